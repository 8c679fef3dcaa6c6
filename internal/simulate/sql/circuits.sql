-- The circuits of a namespace that had runs, and how many those were. $1 namespace text
select c.circuit_id, c.name, run.runs, run.failed, run.answered
from circuit c
join namespace n on n.namespace_id = c.namespace_id
join (
  select circuit, count(*) as runs, count(*) filter (where outcome in ('retryable_failure', 'timed_out')) as failed,
    count(*) filter (where outcome in ('success', 'permanent_failure')) as answered
  from replay_run group by circuit
) as run on run.circuit = c.name
where n.name = $1
order by c.name
