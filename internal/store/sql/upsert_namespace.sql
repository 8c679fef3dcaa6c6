-- The id of a namespace, made on its first use. $1 name text
with made as (
  insert into namespace (name) values ($1) on conflict (name) do nothing returning namespace_id
)
select namespace_id from made union all select namespace_id from namespace where name = $1 limit 1
