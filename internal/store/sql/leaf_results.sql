-- Results of the complete steps that no other step depends on, by step number, as far as $2 bytes go; past that, names alone.
-- $1 task_id bigint, $2 budget int
select step_no, name, case when sum(octet_length(results)) over (order by step_no) <= $2 then results end as results
from (
  select step.step_no, step.name, coalesce(step_end.results, '{}') as results
  from step
  join step_end on step_end.task_id = step.task_id and step_end.step_no = step.step_no and step_end.state = 'complete'
  where step.task_id = $1
    and (2147483647 = any (step.children) or 2147483647 = any (step.join_children))
) leaf
order by step_no
