-- The record of every circuit, in its order.
select circuit_id, generation, recorded_at, from_state::text as from_state, to_state::text as to_state, cause::text as cause, open_until,
  coalesce(wave, 0) as wave, (policy).max_probes as max_probes, (policy).recovery_wave as recovery_wave,
  (extract(epoch from (policy).open_duration) * 1000000)::bigint as open_duration,
  (extract(epoch from (policy).max_open_duration) * 1000000)::bigint as max_open_duration,
  coalesce((policy).max_in_flight, 0) as max_in_flight, coalesce((policy).rate, 0) as rate, (policy).suspend_budgets as suspends,
  hold_from, hold_until
from circuit_event
order by circuit_id, generation
