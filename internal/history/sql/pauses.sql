-- Every dispatch of a step whose handler, or whose namespace, was paused at that instant; and every pause that began before an
-- earlier one of the same handler had ended (task_id NULL). Without pauses nothing of the history is read.
with spelled as (
  select pause_id, namespace_id, handler, since, coalesce(ended_at, until, 'infinity') as ended from pause
)
select entry.task_id, entry.step_no, entry.dispatch, spelled.handler, spelled.since
from spelled
cross join lateral (
  select told.task_id, told.step_no, told.dispatch
  from history
  cross join lateral unnest(history.task_ids, history.step_nos, history.dispatches) as told (task_id, step_no, dispatch)
  where history.kind = 'dispatched' and history.namespace_id = spelled.namespace_id
    and history.recorded_at > spelled.since and history.recorded_at < spelled.ended
) as entry
join step on step.task_id = entry.task_id and step.step_no = entry.step_no
join lane on lane.lane_id = step.lane_id and spelled.handler in ('', lane.handler)
union all
select null, null, null, later.handler, later.since
from spelled as later
join spelled as earlier on earlier.namespace_id = later.namespace_id and earlier.handler = later.handler and earlier.pause_id < later.pause_id
  and earlier.ended > later.since
order by 1, 2, 3, 5
