-- The recorded runs of a namespace's circuits that ended within a time, in a table of this transaction. no numbers those of
-- a circuit in the order of their ends, worker_no the workers that had them; previous_at is when the run of the same step
-- before it began.
-- $1 namespace text, $2 circuit text (empty: all), $3 from, $4 until timestamptz
create temporary table replay_run on commit drop as
select run.*, reach.open_until as reach_until,
  row_number() over (partition by run.circuit order by run.ended_at, run.task_id, run.step_no, run.dispatch)::int as no,
  dense_rank() over (partition by run.circuit order by run.worker_id)::int as worker_no
from (
  select circuit, task_id, step_no, dispatch, coalesce(worker_id, '') as worker_id, outcome, coalesce(started_at, ended_at) as started_at, ended_at,
    lag(coalesce(started_at, ended_at)) over (partition by task_id, step_no order by dispatch) as previous_at
  from step_attempts_v
  where circuit is not null and namespace = $1 and ($2 = '' or circuit = $2) and outcome is not null
    and ended_at >= $3 and ended_at < $4
) as run
left join (
  select circuit, task_id, step_no, dispatch, max(open_until) as open_until
  from circuit_events_v
  where namespace = $1 and cause = 'reach' and at >= $3 and at < $4
  group by circuit, task_id, step_no, dispatch
) as reach on reach.circuit = run.circuit and reach.task_id = run.task_id and reach.step_no = run.step_no and reach.dispatch = run.dispatch
