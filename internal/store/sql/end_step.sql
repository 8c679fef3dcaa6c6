-- Ends a step that this transaction has taken (take_steps.sql), by an operator's word, and wakes what waited for it, as
-- complete.sql does for a worker's: counters are bumped in one order, root stripes last. An arrival at a join is the row returned
-- by the insert into step_end. It runs after reopen_tasks.sql, so the task's end may be recorded anew.
-- $1 at timestamptz, $2 task_id bigint, $3 step_no int, $4 state text, $5 attempts int, $6 failures int, $7 dispatches int,
-- $8 lost_leases int, $9 epoch int, $10 event_no int (all as taken), $11 results text, $12 namespace_id int, $13 actor text,
-- $14 reason text
with ended as (
  insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, ended_at, results,
    actor, reason)
  values ($2, $3, $4::step_end_state, $5, $6, $7, $8, $9, $10 + 1, coalesce($1, clock_timestamp()), $11, $13, $14)
  returning task_id, step_no, state, ended_at
),
parent as materialized (
  select s.children, s.join_children, s.join_stripe, s.join_need
  from ended
  cross join lateral (
    select step.children, step.join_children, step.join_stripe, step.join_need
    from step
    where step.task_id = ended.task_id and step.step_no = ended.step_no
    limit 1
  ) s
),
counted as (
  insert into join_wait as j (task_id, step_no, stripe, need, arrived)
  select $2, c.step_no, c.stripe, c.need, 1
  from parent
  cross join lateral unnest(parent.join_children, parent.join_stripe, parent.join_need) as c (step_no, stripe, need)
  order by c.step_no, c.stripe
  on conflict (task_id, step_no, stripe) do update set arrived = j.arrived + excluded.arrived
  returning j.step_no, j.stripe, j.need, j.arrived
),
counted_root as (
  insert into join_wait as j (task_id, step_no, stripe, need, arrived)
  select $2, step_no, -1, 16, 1 from counted where stripe >= 0 and arrived = need order by step_no
  on conflict (task_id, step_no, stripe) do update set arrived = j.arrived + excluded.arrived
  returning j.step_no, j.need, j.arrived
),
child as materialized (
  select c.step_no from parent cross join lateral unnest(parent.children) as c (step_no)
  union all
  select step_no from counted where stripe = -1 and arrived = need
  union all
  select step_no from counted_root where arrived = need
),
finished as (
  insert into task_end (task_id, state, ended_at)
  select $2, 'complete', coalesce($1, clock_timestamp()) from child where step_no = 2147483647
  returning task_id
),
woken as (
  insert into ready (lane_id, task_id, step_no, runnable_at)
  select s.lane_id, $2, child.step_no, coalesce($1, clock_timestamp())
  from child
  cross join lateral (
    select step.lane_id from step where step.task_id = $2 and step.step_no = child.step_no limit 1
  ) s
  where child.step_no <> 2147483647
  returning lane_id, seq
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids, step_nos, event_nos, dispatches, epochs, attempts,
    failures, lost_leases, states)
  select ended_at, $12, case state when 'complete' then 'completed' else 'resolved' end::history_kind, $13, $14, array[$2::bigint],
    array[$3::int], array[$10::int + 1], array[$7::int], array[$9::int], array[$5::int], array[$6::int], array[$8::smallint],
    array[state::text]
  from ended
),
recorded_end as (
  insert into history (recorded_at, namespace_id, kind, task_ids, states)
  select coalesce($1, clock_timestamp()), $12, 'task_ended', array_agg(task_id), array_agg('complete'::text)
  from finished having count(*) > 0
)
select lane_id, min(seq) as seq, count(*)::int as count from woken group by lane_id
