-- Results of a leased step's parents, in the order of their numbers: those after $3, at most $4 of them.
-- $1 task_id bigint, $2 step_no int, $3 after_no int, $4 limit int
select p.step_no, p.name, coalesce(e.results, '{}') as results
from (
  select u.step_no
  from step cross join lateral unnest(step.parents) as u (step_no)
  where step.task_id = $1 and step.step_no = $2 and u.step_no > $3
  order by u.step_no
  limit $4
) parent
cross join lateral (select step.step_no, step.name from step where step.task_id = $1 and step.step_no = parent.step_no limit 1) p
cross join lateral (select step_end.results from step_end where step_end.task_id = $1 and step_end.step_no = parent.step_no limit 1) e
order by p.step_no
