-- Steps in error that a filter finds, in order, after ($2, $3).
-- $1 namespace_id int, $2 after_task bigint, $3 after_step int, $4 limit int, $5 handlers text[], $6 error_codes text[],
-- $7 template_name text, $8 task_ids bigint[], $9 failed_from timestamptz, $10 failed_before timestamptz, $11 parked_only boolean;
-- each of $5 … $10 null: any
select standing.task_id, standing.step_no, standing.place
from (
  select task_id, step_no, lane_id, 'parked' as place, epoch, error_code, parked_at as failed_at from parked
  union all
  select task_id, step_no, lane_id, 'backoff', epoch, null, null from backoff where failures > 0 and not $11
  union all
  select task_id, step_no, lane_id, 'ready', epoch, null, null from ready where failures > 0 and not $11
) standing
join lane on lane.lane_id = standing.lane_id and lane.namespace_id = $1
left join lateral (
  select step_failure.error_code, step_failure.ended_at
  from step_failure
  where step_failure.task_id = standing.task_id and step_failure.step_no = standing.step_no
    and step_failure.epoch = standing.epoch and step_failure.outcome <> 'lost_lease'
  order by step_failure.dispatch desc
  limit 1
) failure on true
where (standing.task_id, standing.step_no) > ($2, $3)
  and ($5::text[] is null or lane.handler = any ($5))
  and ($6::text[] is null or coalesce(standing.error_code, failure.error_code) = any ($6) or failure.error_code = any ($6))
  and ($8::bigint[] is null or standing.task_id = any ($8))
  and ($9::timestamptz is null or coalesce(failure.ended_at, standing.failed_at) >= $9)
  and ($10::timestamptz is null or coalesce(failure.ended_at, standing.failed_at) < $10)
  and ($7::text is null or exists (select from task where task.task_id = standing.task_id and task.template_name = $7))
order by standing.task_id, standing.step_no
limit $4
