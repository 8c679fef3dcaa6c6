-- What is known, in one snapshot, of a dispatch whose lease is gone: was it concluded under this token, and does the step
-- still wait, or stand parked, only because this dispatch came back without a result? A row that moves stands in one
-- place in every snapshot, so "nothing found" means that the step has no live row of that dispatch.
-- $1 task_id bigint, $2 step_no int, $3 token uuid, $4 dispatch int
select
  ended.digest as ended_digest, ended.state::text as ended_state, ended.token = $3 as ended_by_token,
  failed.digest as failed_digest, failed.outcome::text as failed_outcome,
  case when ready.task_id is not null then 'ready' when backoff.task_id is not null then 'backoff'
    when parked.task_id is not null then 'parked' end as standing,
  (lease.token = $3) is true as leased
from (values (1)) as one (row)
left join lateral (
  select e.digest, e.state, e.token from step_end e where e.task_id = $1 and e.step_no = $2 limit 1
) ended on true
left join lateral (
  select f.digest, f.outcome from step_failure f where f.task_id = $1 and f.step_no = $2 and f.dispatch = $4 and f.token = $3 limit 1
) failed on true
left join lateral (
  select r.task_id from ready r where r.task_id = $1 and r.step_no = $2 and r.last_token = $3 and r.dispatches = $4 limit 1
) ready on true
left join lateral (
  select b.task_id from backoff b where b.task_id = $1 and b.step_no = $2 and b.last_token = $3 and b.dispatches = $4 limit 1
) backoff on true
left join lateral (
  select p.task_id from parked p where p.task_id = $1 and p.step_no = $2 and p.last_token = $3 and p.dispatches = $4 limit 1
) parked on true
left join lateral (
  select l.token from lease l where l.task_id = $1 and l.step_no = $2 limit 1
) lease on true
