-- Late reports that stand in the history or in their table only.
with told as (
  select entry.task_id, entry.step_no, entry.dispatch
  from history
  cross join lateral unnest(history.task_ids, history.step_nos, history.dispatches) as entry (task_id, step_no, dispatch)
  where history.kind = 'late'
)
select coalesce(told.task_id, late_report.task_id) as task_id, coalesce(told.step_no, late_report.step_no) as step_no,
  coalesce(told.dispatch, late_report.dispatch) as dispatch, told.task_id is not null as is_told
from told
full join late_report on late_report.task_id = told.task_id and late_report.step_no = told.step_no
  and late_report.dispatch = told.dispatch
where told.task_id is null or late_report.task_id is null
order by 1, 2, 3
