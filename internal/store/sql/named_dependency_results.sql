-- Results of a step's parents by number, after $3: as many as fit into $6 bytes, and at least one.
-- $1 task_id bigint, $2 step_no int, $3 after_no int, $4 limit int, $5 names text[] (null: all), $6 budget int
select step_no, name, results
from (
  select parent.step_no, parent.name, coalesce(ended.results, '{}') as results,
    row_number() over by_number as place,
    -- each entry costs its framing too
    sum(octet_length(coalesce(ended.results, '{}')) + octet_length(parent.name) + 16) over by_number as running
  from step
  cross join lateral unnest(step.parents) as u (step_no)
  join step as parent on parent.task_id = $1 and parent.step_no = u.step_no
  join step_end as ended on ended.task_id = $1 and ended.step_no = u.step_no
  where step.task_id = $1 and step.step_no = $2 and u.step_no > $3 and ($5::text[] is null or parent.name = any ($5))
  window by_number as (order by parent.step_no)
) as counted
where place <= $4 and (running <= $6 or place = 1)
order by step_no
