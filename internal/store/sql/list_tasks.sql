-- Ids of a namespace's tasks below $2, the newest first. The scan is bounded, so a rare filter gives short pages:
-- last_seen says how far it came. $1 namespace_id int, $2 before_id bigint, $3 limit int, $4 scan_limit int,
-- $5 template_name text, $6 template_version text, $7 labels text[] ('key=value'), $8 created_from timestamptz,
-- $9 created_before timestamptz; each of $5 … $9 null: any
with seen as materialized (
  select task_id, namespace_id, template_name, template_version, labels, created_at
  from task
  where task_id < $2
  order by task_id desc
  limit $4
),
matching as (
  select task_id
  from seen
  where namespace_id = $1
    and ($5::text is null or template_name = $5)
    and ($6::text is null or template_version = $6)
    and ($7::text[] is null or labels @> $7)
    and ($8::timestamptz is null or created_at >= $8)
    and ($9::timestamptz is null or created_at < $9)
  order by task_id desc
  limit $3
)
select array(select task_id from matching order by task_id desc) as task_ids,
  (select min(task_id) from seen) as last_seen,
  (select count(*)::int from seen) as scanned
