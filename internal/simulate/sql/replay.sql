-- Leads a circuit through the runs of replay_run, from closed, under its own policy with other fields set: a row for each
-- thing that happens to it, and a last one, without a cause, for where it stands in the end. The counts are those so far.
--
-- What trips it, closes it and lets runs through is circuit_judged, circuit_at and circuit_room_beside of the schema. What is added
-- here is what the server does with a lease and a report: see charge_circuits.sql and claim.sql.
--
--   kept_back  a run that began when the circuit let none through: it is neither charged nor seen to end
--   saved      of them, those that failed or never answered: calls for nothing
--   delayed    of them, those that were answered; delay_s is the time from their beginnings to when it let more than probes through
create function pg_temp.circuit_replayed(of_circuit int, changes jsonb, from_at timestamptz, until_at timestamptz)
returns table (at timestamptz, from_state text, to_state text, cause text, open_until timestamptz, observed int, failed int, slow int,
  kept_back bigint, saved bigint, delayed bigint, delay_s float8, longest_delay_s float8, rerouted bigint)
language plpgsql
as $$
declare
  c circuit;
  before circuit;
  policy circuit_policy;
  e record;
  seen circuit_window;
  is_failed boolean;
  is_healthy boolean;
  is_slow boolean;
  is_current boolean;
  is_quorum boolean;
  failing int;
  room int;
  -- by number of the run: the circuit's generation when it was let through (0: it was not), and whether as a probe
  let bigint[];
  probes boolean[];
  -- by number of the worker
  windows circuit_window[];
  barred timestamptz[];
  running bigint := 0;
  probing bigint := 0;
  granted bigint := 0;        -- since it came to its state
  waiting bigint := 0;        -- steps kept back since it opened, less those let through since
  opened timestamptz;         -- when it last left closed
  held_n bigint := 0;         -- answered runs kept back since it last let more than probes through,
  held_sum float8 := 0;       --   the sum of their beginnings,
  held_first timestamptz;     --   and the first of those
begin
  select circuit.* into c from circuit where circuit.circuit_id = of_circuit;
  select in_force.* into policy
  from namespace
  cross join lateral circuit_policy_in_force(jsonb_populate_record(c.policy, changes), namespace.circuit_defaults) as in_force
  where namespace.namespace_id = c.namespace_id;
  -- Runs are replayed at the times at which they ran, so limits have nothing to hold back.
  policy.max_in_flight := null;
  policy.rate := null;
  c := circuit_turned(c, 'closed', from_at, null);
  c.hold_from := null;
  c.hold_until := null;
  is_quorum := policy.min_failing_workers > 1;
  select array_fill(0::bigint, array[greatest(count(*), 1)::int]), array_fill(false, array[greatest(count(*), 1)::int]),
    array_fill(null::circuit_window, array[coalesce(max(worker_no), 1)]), array_fill(null::timestamptz, array[coalesce(max(worker_no), 1)])
  into let, probes, windows, barred
  from replay_run where replay_run.circuit = c.name;
  kept_back := 0; saved := 0; delayed := 0; delay_s := 0; longest_delay_s := 0; rerouted := 0;

  for e in
    -- What ends makes room for what begins at the same instant.
    select r.ended_at as happens_at, 0 as kind, r.no, r.worker_no, r.outcome, r.started_at, r.ended_at, r.previous_at, r.reach_until
    from replay_run r where r.circuit = c.name
    union all
    select r.started_at, 1, r.no, r.worker_no, r.outcome, r.started_at, r.ended_at, r.previous_at, r.reach_until
    from replay_run r where r.circuit = c.name
    union all
    select until_at, 2, 0, 0, null, null, null, null, null
    order by 1, 2, 3
  loop
    before := c;
    if c.state = 'open' then
      -- A report is judged a moment before it is recorded, which is when it opens the circuit here: whoever began in fact when the
      -- time was up would come too early by that moment.
      c := circuit_at(c, e.happens_at + case when e.kind = 1 then interval '50 milliseconds' else interval '0' end);
      if c.generation <> before.generation then
        at := c.since; from_state := before.state; to_state := c.state; cause := c.cause; open_until := null;
        observed := null; failed := null; slow := null;
        granted := 0;
        before := c;
        return next;
      end if;
    end if;
    is_failed := e.outcome in ('retryable_failure', 'timed_out');
    is_healthy := e.outcome in ('success', 'permanent_failure');

    if e.kind = 1 then
      if is_quorum and barred[e.worker_no] > e.happens_at then
        rerouted := rerouted + 1;
        continue;
      end if;
      if c.state <> 'closed' then
        room := circuit_room_beside(c, policy, e.happens_at, running, probing, granted);
        if room = 0 then
          kept_back := kept_back + 1;
          if e.previous_at is null or e.previous_at < opened then
            waiting := waiting + 1;
          end if;
          if is_healthy then
            delayed := delayed + 1;
            held_n := held_n + 1;
            held_sum := held_sum + extract(epoch from e.happens_at);
            held_first := coalesce(held_first, e.happens_at);
          elsif is_failed then
            saved := saved + 1;
          end if;
          continue;
        end if;
        waiting := greatest(waiting - 1, 0);
      end if;
      let[e.no] := c.generation;
      running := running + 1;
      granted := granted + 1;
      if c.state = 'half_open' then
        probes[e.no] := true;
        probing := probing + 1;
      end if;
      continue;
    end if;

    if e.kind = 0 then
      if let[e.no] = 0 then
        continue;
      end if;
      is_current := let[e.no] >= c.entered;
      running := running - 1;
      if probes[e.no] then
        probing := probing - 1;
      end if;
      if is_current then
        granted := granted - 1;
      end if;
      if not (is_failed or is_healthy) then
        continue;
      end if;
      is_slow := e.outcome <> 'timed_out' and coalesce(e.ended_at - e.started_at >= policy.slow_call_duration, false);
      failing := 1;
      if is_quorum then
        windows[e.worker_no] := circuit_window_add(windows[e.worker_no], policy.window_duration, e.happens_at, 1, is_failed::int, 0);
        if is_failed then
          select count(*) into failing
          from unnest(windows) as w
          where sum_of((circuit_window_at(w, policy.window_duration, e.happens_at)).failed) > 0;
        end if;
      end if;
      c := circuit_judged(c, policy, e.happens_at,
        row(1, is_failed::int, is_slow::int,
          (probes[e.no] and is_current and c.state = 'half_open' and is_healthy and not is_slow)::int,
          (probes[e.no] and is_current and c.state = 'half_open' and (is_failed or is_slow))::int,
          (is_current and c.state = 'recovering' and is_healthy and not is_slow)::int,
          (is_current and c.state = 'recovering' and (is_failed or is_slow))::int,
          e.reach_until)::circuit_tally,
        failing, waiting > 0);
      if c.generation = before.generation then
        continue;
      end if;
      seen := circuit_window_add(before.calls, policy.window_duration, e.happens_at, 1, is_failed::int, is_slow::int);
      at := e.happens_at; from_state := before.state; to_state := c.state; cause := c.cause; open_until := c.open_until;
      observed := sum_of(seen.observed); failed := sum_of(seen.failed); slow := sum_of(seen.slow);
      if c.cause = 'workers_barred' then
        for i in 1 .. cardinality(windows) loop
          if sum_of((circuit_window_at(windows[i], policy.window_duration, e.happens_at)).failed) > 0 then
            barred[i] := e.happens_at + policy.open_duration;
          end if;
          windows[i] := null;
        end loop;
      elsif c.entered <> before.entered then
        granted := 0;
        if is_quorum then
          windows := array_fill(null::circuit_window, array[cardinality(windows)]);
        end if;
      end if;
      if before.state = 'closed' and c.state = 'open' then
        opened := e.happens_at;
        waiting := 0;
      end if;
      if held_n > 0 and c.state in ('recovering', 'closed') then
        delay_s := delay_s + held_n * extract(epoch from e.happens_at)::float8 - held_sum;
        longest_delay_s := greatest(longest_delay_s, extract(epoch from e.happens_at - held_first));
        held_n := 0; held_sum := 0; held_first := null;
      end if;
      return next;
      continue;
    end if;

    -- the end of the time
    if held_n > 0 then
      delay_s := delay_s + held_n * extract(epoch from e.happens_at)::float8 - held_sum;
      longest_delay_s := greatest(longest_delay_s, extract(epoch from e.happens_at - held_first));
    end if;
    at := e.happens_at; from_state := c.state; to_state := c.state; cause := null; open_until := c.open_until;
    observed := null; failed := null; slow := null;
    return next;
  end loop;
end
$$
