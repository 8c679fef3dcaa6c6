-- Forgets idempotency keys whose task ended (or is gone) and whose 7 days have passed. $1 at timestamptz, $2 limit int
delete from submit_key
where (namespace_id, key) in (
  select old.namespace_id, old.key
  from submit_key old
  left join task on task.task_id = old.task_id
  left join task_end on task_end.task_id = old.task_id
  where old.created_at < coalesce($1, now()) - interval '7 days'
    and (task.task_id is null or task_end.ended_at < coalesce($1, now()) - interval '7 days')
  order by old.namespace_id, old.key
  limit $2
)
