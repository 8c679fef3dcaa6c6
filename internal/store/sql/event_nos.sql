-- The number of the last event of each of a task's steps; steps that nothing has happened to yet are absent. Their sum
-- rises by one with every event: a task's revision. $1 task_id bigint
select step_no, event_no from step_end where task_id = $1
union all
select step_no, event_no from ready where task_id = $1 and event_no > 0
union all
select step_no, event_no from backoff where task_id = $1 and event_no > 0
union all
select step_no, event_no from lease where task_id = $1
union all
select step_no, event_no from parked where task_id = $1
