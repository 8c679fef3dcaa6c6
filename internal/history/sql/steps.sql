-- The submitted graphs: every step's parents, policy, circuit and budget, and whether its handler is paused now.
select task_id, step_no, parents, retry_limit, retryable, max_lost_leases::int as max_lost_leases,
  (extract(epoch from backoff_initial) * 1000000)::bigint as backoff_initial, backoff_multiplier,
  (extract(epoch from backoff_max) * 1000000)::bigint as backoff_max, backoff_jitter,
  (extract(epoch from max_retry_after) * 1000000)::bigint as max_retry_after, non_retryable_codes, coalesce(lane.circuit_id, 0) as circuit_id,
  (extract(epoch from max_elapsed) * 1000000)::bigint as max_elapsed, coalesce(lane.is_paused, false) as is_paused
from step
left join (
  select lane_id, circuit_id, exists (
    select from pause
    where pause.namespace_id = lane.namespace_id and pause.handler in ('', lane.handler) and pause.ended_at is null
      and (pause.until is null or pause.until > now())) as is_paused
  from lane
) as lane on lane.lane_id = step.lane_id
order by task_id, step_no
