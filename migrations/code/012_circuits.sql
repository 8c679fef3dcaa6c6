-- What is true of a shared circuit: its policy, its window, its states. Pure functions of the row and an instant; what
-- happens to it is done by the statements of internal/store/sql/.
--
--   closed ──rate, slow rate, reach──▶ open ──its time is up──▶ half_open ──enough probes passed──▶ recovering ──▶ closed
--                                       ▲                          │                                   │
--                                       └──a probe failed──────────┴──a step of a wave failed──────────┘  for twice as long
--   any ──HoldCircuit──▶ held ──ReleaseCircuit, or its end──▶ half_open

create or replace function circuit_policy_in_force(own circuit_policy, defaults circuit_policy)
returns circuit_policy
language sql immutable parallel safe
as $$
  select row(
    coalesce((own).window_duration, (defaults).window_duration, interval '60 seconds'),
    coalesce((own).min_observations, (defaults).min_observations, 20),
    coalesce((own).failure_rate_threshold, (defaults).failure_rate_threshold, 0.5),
    coalesce((own).slow_call_duration, (defaults).slow_call_duration),
    coalesce((own).slow_rate_threshold, (defaults).slow_rate_threshold, 0.5),
    coalesce((own).min_failing_workers, (defaults).min_failing_workers, 1),
    coalesce((own).open_duration, (defaults).open_duration, interval '30 seconds'),
    greatest(
      coalesce((own).max_open_duration, (defaults).max_open_duration, interval '3600 seconds'),
      coalesce((own).open_duration, (defaults).open_duration, interval '30 seconds')),
    coalesce((own).max_probes, (defaults).max_probes, 1),
    coalesce((own).close_after_successes, (defaults).close_after_successes, 3),
    coalesce((own).recovery_wave, (defaults).recovery_wave, 10),
    coalesce((own).max_in_flight, (defaults).max_in_flight),
    coalesce((own).rate, (defaults).rate),
    coalesce((own).suspend_budgets, (defaults).suspend_budgets, false)
  )::circuit_policy
$$;
comment on function circuit_policy_in_force(circuit_policy, circuit_policy) is
  'What holds for a circuit: what is set on it, else its namespace''s default, else the built-in value. NULL: no slow calls, no limit.';

-- ---------------------------------------------------------------- the window

-- The window as it stands at an instant: buckets that are too old have left it. A clock that went back changes nothing.
create or replace function circuit_window_at(w circuit_window, width interval, at timestamptz)
returns circuit_window
language plpgsql immutable parallel safe
as $$
declare
  newest bigint := floor(extract(epoch from at) * 10 / extract(epoch from width));
  gone int;
begin
  if w.bucket is null or w.width <> width or newest - w.bucket >= 10 then
    return row(width, newest, array_fill(0, array[10]), array_fill(0, array[10]), array_fill(0, array[10]))::circuit_window;
  end if;
  gone := newest - w.bucket;
  if gone > 0 then
    w.bucket := newest;
    w.observed := array_fill(0, array[gone]) || w.observed[1:10 - gone];
    w.failed := array_fill(0, array[gone]) || w.failed[1:10 - gone];
    w.slow := array_fill(0, array[gone]) || w.slow[1:10 - gone];
  end if;
  return w;
end
$$;

create or replace function circuit_window_add(w circuit_window, width interval, at timestamptz, observed int, failed int, slow int)
returns circuit_window
language plpgsql immutable parallel safe
as $$
begin
  w := circuit_window_at(w, width, at);
  w.observed[1] := w.observed[1] + observed;
  w.failed[1] := w.failed[1] + failed;
  w.slow[1] := w.slow[1] + slow;
  return w;
end
$$;

create or replace function sum_of(counts int[])
returns int
language sql immutable parallel safe
as $$ select coalesce(sum(n), 0)::int from unnest(counts) as counted (n) $$;

-- ---------------------------------------------------------------- the states

-- The circuit as it is when it comes to a state.
create or replace function circuit_turned(c circuit, next_state circuit_state, at timestamptz, why circuit_cause)
returns circuit
language plpgsql immutable parallel safe
as $$
begin
  c.state := next_state;
  c.generation := c.generation + 1;
  c.entered := c.generation;
  c.since := at;
  c.cause := why;
  c.open_until := null;
  c.probes_passed := 0;
  c.wave := 0;
  c.wave_no := 0;
  c.wave_passed := 0;
  c.calls := null;
  if next_state = 'closed' then
    c.open_for := null;
  end if;
  return c;
end
$$;

-- The circuit as it is when it opens: for open_duration the first time, and twice as long each time that it opens again
-- before it has closed.
create or replace function circuit_opened(c circuit, policy circuit_policy, at timestamptz, why circuit_cause)
returns circuit
language plpgsql immutable parallel safe
as $$
begin
  c := circuit_turned(c, 'open', at, why);
  c.open_for := least(coalesce(c.open_for * 2, policy.open_duration), policy.max_open_duration);
  c.open_until := at + c.open_for;
  return c;
end
$$;

-- What time alone makes of a circuit, one transition at a call. Two calls do: a planned hold may have begun and ended unseen.
create or replace function circuit_at(c circuit, at timestamptz)
returns circuit
language plpgsql immutable parallel safe
as $$
begin
  if c.hold_from <= at and c.state <> 'held' then
    return circuit_turned(c, 'held', c.hold_from, 'hold');
  end if;
  if c.state = 'held' and c.hold_until <= at then
    c := circuit_turned(c, 'half_open', c.hold_until, 'hold_ended');
    c.hold_from := null;
    c.hold_until := null;
    c.hold_reason := null;
    c.hold_actor := null;
    return c;
  end if;
  if c.state = 'open' and c.open_until <= at then
    return circuit_turned(c, 'half_open', c.open_until, 'open_elapsed');
  end if;
  return c;
end
$$;

-- What a batch of reports makes of a circuit. The batch is judged as a whole: whatever share of it failed, it is one look.
--
-- failing_workers  how many workers have a failure in their windows, this batch included
-- backlog          whether a step of the circuit waits that could run now
create or replace function circuit_judged(c circuit, policy circuit_policy, at timestamptz, batch circuit_tally, failing_workers int,
  backlog boolean)
returns circuit
language plpgsql immutable parallel safe
as $$
declare
  observed int;
  failed int;
  slow int;
begin
  c.calls := circuit_window_add(c.calls, policy.window_duration, at, batch.observed, batch.failed, batch.slow);

  if batch.reach_until > at and c.state = 'open' then
    -- Asked to stay away for longer than it would: the probing begins later. The state and its since stay.
    if batch.reach_until > c.open_until then
      c.open_until := batch.reach_until;
      c.cause := 'reach';
      c.generation := c.generation + 1;
    end if;
    return c;
  end if;
  if batch.reach_until > at and c.state <> 'held' then
    c := circuit_opened(c, policy, at, 'reach');
    c.open_until := batch.reach_until;
    return c;
  end if;

  case c.state
    when 'closed' then
      observed := sum_of((c.calls).observed);
      failed := sum_of((c.calls).failed);
      slow := sum_of((c.calls).slow);
      if observed < policy.min_observations then
        return c;
      end if;
      if failed >= policy.failure_rate_threshold * observed and failed > 0 then
        if failing_workers >= policy.min_failing_workers then
          return circuit_opened(c, policy, at, 'failure_rate');
        end if;
        -- Too few see it fail: it is them. They are barred, and the others begin a fresh window.
        c.generation := c.generation + 1;
        c.cause := 'workers_barred';
        c.calls := null;
      elsif policy.slow_call_duration is not null and slow >= policy.slow_rate_threshold * observed and slow > 0 then
        return circuit_opened(c, policy, at, 'slow_rate');
      end if;

    when 'half_open' then
      if batch.probes_failed > 0 then
        return circuit_opened(c, policy, at, 'probe_failed');
      end if;
      c.probes_passed := c.probes_passed + batch.probes_passed;
      if c.probes_passed >= policy.close_after_successes then
        if not backlog then
          return circuit_turned(c, 'closed', at, 'recovered');
        end if;
        c := circuit_turned(c, 'recovering', at, 'probes_passed');
        c.wave := policy.recovery_wave;
        c.wave_no := 1;
      end if;

    when 'recovering' then
      if batch.wave_failed > 0 then
        return circuit_opened(c, policy, at, 'wave_failed');
      end if;
      c.wave_passed := c.wave_passed + batch.wave_passed;
      if not backlog or c.wave_passed >= c.wave and c.wave_no = 10 then
        return circuit_turned(c, 'closed', at, 'recovered');
      end if;
      if c.wave_passed >= c.wave then
        c.generation := c.generation + 1;
        c.cause := 'wave_passed';
        c.wave := c.wave * 2;
        c.wave_no := c.wave_no + 1;
        c.wave_passed := 0;
      end if;

    else
      null; -- open or held: what was under way when it shut decides nothing
  end case;
  return c;
end
$$;
comment on function circuit_judged(circuit, circuit_policy, timestamptz, circuit_tally, int, boolean) is
  'The state machine of a shared circuit: what a batch of reports makes of it. The only place where one trips, closes or doubles its wave.';

-- ---------------------------------------------------------------- what it lets through

-- Closed, without limits, and no hold in force: a claim that shares its lock may grant as many as it likes.
create or replace function circuit_is_plain(c circuit, policy circuit_policy, at timestamptz)
returns boolean
language sql immutable parallel safe
as $$
  select (c).state = 'closed' and ((c).hold_from is null or (c).hold_from > at)
    and (policy).max_in_flight is null and (policy).rate is null
$$;

-- How far ahead of an even pace starts may run: 100 ms' worth, and one start at least. Over T seconds no more than
-- rate * (T + burst) steps start.
create or replace function circuit_burst_s(rate float8)
returns float8
language sql immutable parallel safe
as $$ select greatest(0.1, 1 / rate) $$;

-- How many steps more a circuit lets through beside those that run. NULL: as many as one likes.
--
-- running  leases of its steps
-- probing  of them, probes; those of an earlier half-open period count too: never more than max_probes at any instant
-- granted  of them, granted since it came to its state; one that is lost or handed back makes room again by itself
create or replace function circuit_room_beside(c circuit, policy circuit_policy, at timestamptz, running bigint, probing bigint, granted bigint)
returns int
language plpgsql immutable parallel safe
as $$
declare
  room int;
begin
  case c.state
    when 'open', 'held' then
      return 0;
    when 'half_open' then
      room := policy.max_probes - probing;
    when 'recovering' then
      room := c.wave - c.wave_passed - granted;
    else
      room := null;
  end case;
  if policy.max_in_flight is not null then
    room := least(room, policy.max_in_flight - running);
  end if;
  if policy.rate is not null then
    room := least(room, floor(1e-6 + policy.rate
      * (circuit_burst_s(policy.rate) - greatest(coalesce(extract(epoch from c.rate_at - at), 0), 0)))::int);
  end if;
  return case when room is not null then greatest(room, 0) end; -- greatest() alone would take NULL for nothing
end
$$;

-- How many steps of the circuit may be granted now, in a lane. NULL: as many as one likes. It counts leases, so a claim
-- must hold the circuit's lock before the statement that asks begins.
create or replace function circuit_room(c circuit, policy circuit_policy, at timestamptz)
returns int
language plpgsql stable
as $$
declare
  running bigint;
  probing bigint;
  granted bigint;
begin
  if circuit_is_plain(c, policy, at) then
    return null;
  end if;
  c := circuit_at(circuit_at(c, at), at);
  -- Mostly one count at most is asked for.
  if c.state in ('open', 'held') then
    return 0;
  elsif c.state = 'half_open' then
    select count(*) into probing from lease where lease.circuit_id = c.circuit_id and lease.probe;
  elsif c.state = 'recovering' then
    select count(*) into granted from lease where lease.circuit_id = c.circuit_id and lease.circuit_generation >= c.entered;
  end if;
  if policy.max_in_flight is not null then
    select count(*) into running from lease where lease.circuit_id = c.circuit_id;
  end if;
  return circuit_room_beside(c, policy, at, running, probing, granted);
end
$$;
comment on function circuit_room(circuit, circuit_policy, timestamptz) is
  'How many steps of a circuit may be granted now; NULL: no bound. The claim and the readiness functions both ask it.';

-- When a circuit that lets nothing through now may do so by itself. NULL: that hangs on reports or operators.
create or replace function circuit_opens_at(c circuit, policy circuit_policy, at timestamptz)
returns timestamptz
language plpgsql immutable parallel safe
as $$
begin
  c := circuit_at(circuit_at(c, at), at);
  if c.state = 'open' then
    return c.open_until;
  elsif c.state = 'held' then
    return c.hold_until;
  elsif policy.rate is not null and c.rate_at > at then
    return c.rate_at + make_interval(secs => 1 / policy.rate - circuit_burst_s(policy.rate));
  end if;
  return null;
end
$$;

-- The steps of a lane that a claim with this much room takes next: claim.sql without its locks.
create or replace function lane_front(of_lane int, room int, at timestamptz)
returns table (task_id bigint, step_no int)
language sql stable
as $$
  select standing.task_id, standing.step_no
  from (
    (select r.runnable_at, r.seq, r.task_id, r.step_no from ready r where r.lane_id = of_lane order by r.lane_id, r.seq limit room)
    union all
    (select b.due_at, null, b.task_id, b.step_no from backoff b
     where b.lane_id = of_lane and b.due_at <= coalesce(at, now()) order by b.lane_id, b.due_at limit room)
  ) as standing
  order by standing.runnable_at, standing.seq
  limit room
$$;

-- Whether the circuit of a lane lets a step go that could run otherwise. NULL circuit: yes.
create or replace function circuit_admits(of_circuit int, of_lane int, of_task bigint, of_step int, at timestamptz)
returns boolean
language plpgsql stable
as $$
declare
  room int;
begin
  if of_circuit is null then
    return true;
  end if;
  select circuit_room(c, circuit_policy_in_force(c.policy, n.circuit_defaults), coalesce(at, now()))
  into room
  from circuit c join namespace n on n.namespace_id = c.namespace_id
  where c.circuit_id = of_circuit;
  return room is null or room > 0 and exists (
    select from lane_front(of_lane, room, at) as front where front.task_id = of_task and front.step_no = of_step);
end
$$;

-- How many steps of a circuit could run now but for it, counted up to most.
create or replace function circuit_waiting(of_circuit int, at timestamptz, most int)
returns int
language sql stable
as $$
  select count(*)::int
  from (
    select
    from lane
    cross join lateral (
      (select from ready where ready.lane_id = lane.lane_id limit most)
      union all
      (select from backoff where backoff.lane_id = lane.lane_id and backoff.due_at <= coalesce(at, now()) limit most)
    ) as standing
    where lane.circuit_id = of_circuit and not exists (select from pauses_over(lane.namespace_id, lane.handler, at))
    limit most
  ) as counted
$$;

-- Why a circuit that does not let a step go keeps it, as waiting_for says it.
create or replace function circuit_word(of_circuit int, at timestamptz)
returns text
language sql stable
as $$
  select case (circuit_at(circuit_at(c, coalesce(at, now())), coalesce(at, now()))).state
    when 'held' then 'paused' when 'closed' then 'limit' else 'circuit' end
  from circuit c where c.circuit_id = of_circuit
$$;

create or replace function circuit_until(of_circuit int, at timestamptz)
returns timestamptz
language sql stable
as $$
  select circuit_opens_at(c, circuit_policy_in_force(c.policy, n.circuit_defaults), coalesce(at, now()))
  from circuit c join namespace n on n.namespace_id = c.namespace_id
  where c.circuit_id = of_circuit
$$;
