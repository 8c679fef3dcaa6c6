-- Records the results whose leases lock_leases.sql holds, and makes ready what was waiting for them.
--
--   $1 bigint[] tasks $2 int[] step_no $3 uuid[] tokens $4 bytea[] SHA-256 of each result $5 bytea[] results,
--   all sorted by task and step
--
-- Returns one row: the positions in the batch (from 1) that were accepted, the steps made ready, the tasks ended.
-- A report whose lease is gone is not among the accepted.
with held as materialized (
  select report.place, report.digest, report.result, lease.ctid as lease_ctid, lease.task_id, lease.step_no,
         lease.attempts + 1 as attempts, lease.dispatches, lease.epoch, lease.event_no + 1 as event_no
  from unnest($1::bigint[], $2::int[], $3::uuid[], $4::bytea[], $5::bytea[])
    with ordinality as report (task_id, step_no, token, digest, result, place)
  cross join lateral (
    select lease.ctid, lease.task_id, lease.step_no, lease.attempts, lease.dispatches, lease.epoch, lease.event_no
    from lease
    where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
    limit 1
  ) as lease
),
released as (
  delete from lease
  where ctid = any (array(select lease_ctid from held))
  returning 1
),
ended as (
  insert into step_end (task_id, step_no, dispatch, attempt, epoch, digest, result, ended_at)
  select task_id, step_no, dispatches, attempts, epoch, digest, result, clock_timestamp()
  from held
  returning task_id, step_no
),
parent as materialized (
  select step.task_id, step.sole_children, step.join_children, step.join_parents
  from ended
  cross join lateral (
    select step.task_id, step.sole_children, step.join_children, step.join_parents
    from step
    where step.task_id = ended.task_id and step.step_no = ended.step_no
    limit 1
  ) as step
),
-- Only a row that the insert into step_end returned counts as an arrival, so that no parent arrives twice.
-- Counting down is the point: two parents that each look whether the other has ended, in transactions that overlap,
-- both see it running and the child sleeps for ever.
countdown as (
  insert into join_wait as wait (task_id, step_no, parents, arrived)
  select parent.task_id, child.step_no, child.parents, count(*)
  from parent
  cross join lateral unnest(parent.join_children, parent.join_parents) as child (step_no, parents)
  group by parent.task_id, child.step_no, child.parents
  order by parent.task_id, child.step_no
  on conflict (task_id, step_no) do update set arrived = wait.arrived + excluded.arrived
  returning wait.task_id, wait.step_no, wait.arrived = wait.parents as is_open
),
-- The task itself is the child of its last steps, under the number 0 that no step has.
unblocked as materialized (
  select parent.task_id, child.step_no
  from parent
  cross join lateral unnest(parent.sole_children) as child (step_no)
  union all
  select task_id, step_no from countdown where is_open
),
finished as (
  insert into task_end (task_id, ended_at)
  select task_id, clock_timestamp() from unblocked where step_no = 0
  returning task_id
),
woken as (
  insert into ready (lane_id, task_id, step_no, attempts, dispatches, lost_leases, epoch, event_no)
  select step.lane_id, unblocked.task_id, unblocked.step_no, 0, 0, 0, 1, 1
  from unblocked
  cross join lateral (
    select step.lane_id
    from step
    where step.task_id = unblocked.task_id and step.step_no = unblocked.step_no
    limit 1
  ) as step
  where unblocked.step_no > 0
  returning lane_id
),
entry as (
  insert into history (at, kind, task_ids, step_nos, event_nos, dispatches)
  select clock_timestamp(), 3, array_agg(task_id), array_agg(step_no), array_agg(event_no), array_agg(dispatches)
  from held
  having count(*) > 0
)
select array(select place from held) as accepted,
       (select count(*) from woken) as woken,
       (select count(*) from finished) as finished,
       must_match((select count(*) from released), current_setting('tasker_bench_floor.locked')::bigint) as moved;
