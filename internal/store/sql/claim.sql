-- Grants leases: from each wanted lane the steps that became runnable first, fresh and retried alike, each to the session
-- that its slot names.
--
-- Safe because candidates are locked (SKIP LOCKED: several servers claim side by side) and ready and backoff rows are
-- never updated, so a locked row is deleted by the same statement. A session's row is share-locked under its epoch: from
-- the commit of a take-over or a drain on, the old server's grants find no session and leave their rows standing. So do, from
-- the commit of a pause on, those of a server that does not know of it: the row's number is beyond the server's (008_pauses.sql).
--
-- $1 at timestamptz,
-- $2 lane_id int[], $3 after_seq bigint[] (the lane's cursor), $4 wanted int[], $5 slot_offset int[]: a lane each
-- $6 slot_session int[], $7 slot_token uuid[]: a slot each; the lane's k-th step takes slot slot_offset + k, and its row
--   names that instead of what the caller knows of it
-- $8 session_id int[], $9 epoch int[], $10 delivery_timeout interval[], $11 beats boolean[]: a session each, sorted
-- $12 namespace_id int
-- $13 circuit_id int[], $14 exclusive boolean[], $15 lane_id int[]: a circuit each whose lanes stand in $2. Where it bounds what
--   goes out, only this lane takes from it. lock_circuits.sql has locked it, in a statement before: what is counted here is
--   what stands. A circuit that was taken for plain and is not lets nothing out.
-- $16 circuit_id int[]: of each lane; 0: none
-- $17 pauses int: up to which number the server knows the namespace's pauses, whose lanes it has left out of $2
with session as materialized (
  select w.session_id, w.worker_id, asked.delivery_timeout, asked.beats
  from unnest($8::int[], $9::int[], $10::interval[], $11::boolean[]) as asked (session_id, epoch, delivery_timeout, beats)
  cross join lateral (
    select worker_session.session_id, worker_session.worker_id
    from worker_session
    where worker_session.session_id = asked.session_id and worker_session.epoch = asked.epoch and worker_session.pauses <= $17
      and worker_session.drained_at is null and worker_session.closed_at is null
    for share
  ) w
),
gate as materialized (
  select asked.circuit_id, asked.lane_id, asked.exclusive, (c).generation, (c).state = 'half_open' as probe,
    -- What is on record decides: one whose open time ended since advance_circuits.sql looked is for the next claim to probe.
    case when (c).state in ('open', 'held') then 0
      else circuit_room(c, circuit_policy_in_force((c).policy, n.circuit_defaults), coalesce($1, clock_timestamp())) end as room
  from unnest($13::int[], $14::boolean[], $15::int[]) as asked (circuit_id, exclusive, lane_id)
  cross join lateral (select circuit from circuit where circuit.circuit_id = asked.circuit_id limit 1) as found (c)
  cross join lateral (
    select namespace.circuit_defaults from namespace where namespace.namespace_id = (c).namespace_id limit 1
  ) n
),
granted as materialized (
  -- What is looked for in the rows that are passed by stands first, then what the history says. A column costs each row something
  -- in every part it passes: what can be made up where it is used is not among them.
  select c.tid, c.seq, c.dispatches, s.parents, c.task_id, c.step_no, c.event_no, c.epoch, session.session_id,
    coalesce($1, clock_timestamp()) as granted_at, want.lane_id, want.slot_offset + c.place as slot, c.attempts, c.failures,
    c.lost_leases, c.undelivered, c.released, c.skipped, c.started, c.runnable_at, c.first_started_at,
    session.delivery_timeout, s.name as step_name, s.retry_limit, s.handler_config, s.run_timeout, s.max_elapsed,
    -- unless set: long enough for the run of a worker that sends no heartbeats, else 30 s
    coalesce(s.lease_duration, case when session.beats then interval '30 seconds'
      else greatest(interval '30 seconds', s.run_timeout + interval '5 seconds') end) as lease_duration,
    t.name as task_name, t.context, t.labels, t.trace_context, want.circuit_id,
    -- Looked up, not joined, and a budget's end written out twice: a join costs each step, and most have neither.
    case when want.circuit_id <> 0 then (select gate.generation from gate where gate.circuit_id = want.circuit_id) end as circuit_generation,
    case when want.circuit_id <> 0 then (select gate.probe from gate where gate.circuit_id = want.circuit_id) end as probe,
    case
      when t.deadline is null and s.max_elapsed is null then null
      -- one that seems spent may have been suspended
      when least(t.deadline, coalesce(c.first_started_at, $1, clock_timestamp()) + s.max_elapsed) <= coalesce($1, clock_timestamp())
        then least(deadline_end(c.task_id, $1), elapsed_end(c.task_id, c.step_no, c.first_started_at, $1))
      else least(t.deadline, coalesce(c.first_started_at, $1, clock_timestamp()) + s.max_elapsed)
    end as stop_at
  from (
    select asked.lane_id, asked.after_seq, asked.slot_offset, asked.circuit_id, case when asked.circuit_id = 0 then asked.wanted
      else (select case when gate.room is null then asked.wanted when gate.exclusive and gate.lane_id = asked.lane_id
        then least(gate.room, asked.wanted) else 0 end from gate where gate.circuit_id = asked.circuit_id) end as wanted
    from unnest($2::int[], $3::bigint[], $4::int[], $5::int[], $16::int[]) as asked (lane_id, after_seq, wanted, slot_offset, circuit_id)
  ) want
  cross join lateral (
    select standing.*, row_number() over (order by standing.runnable_at, standing.seq)::int as place
    from (
      -- What is sorted by stands first, or each row would be formed once more to bring it there.
      (select * from (select r.seq, r.runnable_at, r.ctid as tid, r.task_id, r.step_no, r.attempts, r.failures, r.dispatches,
         r.epoch, r.event_no, r.lost_leases, r.undelivered, r.released, r.skipped, r.started, r.first_started_at
       from ready r
       where r.lane_id = want.lane_id and r.seq > want.after_seq
       order by r.lane_id, r.seq
       limit want.wanted
       for update skip locked) fresh)
      union all
      (select * from (select null::bigint, b.due_at, b.ctid, b.task_id, b.step_no, b.attempts, b.failures, b.dispatches,
         b.epoch, b.event_no, b.lost_leases, b.undelivered, b.released, b.skipped, b.started, b.first_started_at
       from backoff b
       where b.lane_id = want.lane_id and b.due_at <= coalesce($1, now())
       order by b.lane_id, b.due_at
       limit want.wanted
       for update skip locked) due)
    ) standing
    order by standing.runnable_at, standing.seq
    limit want.wanted
  ) c
  cross join lateral (
    select * from session
    where session.session_id = ($6::int[])[want.slot_offset + c.place]
      and (want.circuit_id = 0 or not exists (
        select from circuit_worker w
        where w.circuit_id = want.circuit_id and w.worker_id = session.worker_id and w.barred_until > coalesce($1, clock_timestamp())))
    limit 1
  ) session
  cross join lateral (
    select step.name, step.retry_limit, step.handler_config, step.parents, step.run_timeout, step.max_elapsed, step.lease_duration
    from step where step.task_id = c.task_id and step.step_no = c.step_no limit 1
  ) s
  cross join lateral (
    select task.name, task.context, task.labels, task.trace_context, task.deadline from task where task.task_id = c.task_id limit 1
  ) t
),
taken_ready as (
  delete from ready where ctid = any (array(select tid from granted where seq is not null))
),
taken_backoff as (
  delete from backoff where ctid = any (array(select tid from granted where seq is null))
),
leased as (
  insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started, seq, due_at, runnable_at, first_started_at, granted_at, until, lease_duration,
    run_timeout, stop_at, circuit_id, circuit_generation, probe)
  select task_id, step_no, lane_id, session_id, ($7::uuid[])[slot], attempts, failures, dispatches + 1, epoch, event_no + 1,
    lost_leases, undelivered, released, skipped, started, seq, case when seq is null then runnable_at end, runnable_at,
    case when max_elapsed is not null then coalesce(first_started_at, granted_at) end,
    granted_at, granted_at + delivery_timeout, lease_duration, run_timeout,
    stop_at, nullif(circuit_id, 0), circuit_generation, probe
  from granted
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, step_nos, event_nos, dispatches, epochs, session_ids)
  select max(granted_at), $12, 'dispatched', array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches + 1), array_agg(epoch), array_agg(session_id)
  from granted having count(*) > 0
)
-- Most steps have no parents and run for the first time: they are spared the looks for what they cannot have.
select g.slot, g.seq, g.task_id, g.step_no, g.attempts, g.dispatches + 1 as dispatch, g.granted_at, g.lease_duration, g.run_timeout,
  g.stop_at, g.step_name, g.retry_limit, g.handler_config, g.task_name, g.context, g.labels, g.trace_context, g.probe,
  null::int as parent_count, null::text[] as names, null::text[] as results, null::text as checkpoint,
  null::int as failed_dispatch, null::text as failed_outcome, null::int as failed_attempt, null::timestamptz as failed_at,
  null::text as error_code, null::text as message, null::text as error_class, null::int as http_status, null::text as stack_trace,
  null::text as details
from granted g
where g.parents is null and g.dispatches = 0
union all
select g.slot, g.seq, g.task_id, g.step_no, g.attempts, g.dispatches + 1 as dispatch, g.granted_at, g.lease_duration, g.run_timeout,
  g.stop_at, g.step_name, g.retry_limit, g.handler_config, g.task_name, g.context, g.labels, g.trace_context, g.probe,
  cardinality(g.parents) as parent_count, dependency.names, dependency.results,
  saved.body as checkpoint,
  f.dispatch as failed_dispatch, f.outcome::text as failed_outcome, f.attempt as failed_attempt, f.ended_at as failed_at,
  f.error_code, f.message, f.error_class, f.http_status, f.stack_trace, f.details
from granted g
left join lateral (
  -- Results of up to 16 parents ride along; wider joins are read page by page (see dependency_results.sql).
  select array_agg(p.name order by u.place) as names, array_agg(coalesce(p.results, '{}') order by u.place) as results
  from unnest(g.parents) with ordinality as u (step_no, place)
  cross join lateral (
    select step.name, e.results
    from step
    cross join lateral (
      select step_end.results from step_end where step_end.task_id = g.task_id and step_end.step_no = u.step_no limit 1
    ) e
    where step.task_id = g.task_id and step.step_no = u.step_no
    limit 1
  ) p
  where cardinality(g.parents) <= 16
) dependency on g.parents is not null
left join lateral (
  select checkpoint.body from checkpoint where checkpoint.task_id = g.task_id and checkpoint.step_no = g.step_no and g.dispatches > 0 limit 1
) saved on true
left join lateral (
  -- Named one by one: a plan is set up for each claim, and for each of its columns.
  select step_failure.dispatch, step_failure.outcome, step_failure.attempt, step_failure.ended_at, step_failure.error_code,
    step_failure.message, step_failure.error_class, step_failure.http_status, step_failure.stack_trace, step_failure.details
  from step_failure
  where g.failures > 0 and step_failure.task_id = g.task_id and step_failure.step_no = g.step_no
    and step_failure.outcome <> 'lost_lease'
  order by step_failure.dispatch desc
  limit 1
) f on true
where g.parents is not null or g.dispatches > 0
