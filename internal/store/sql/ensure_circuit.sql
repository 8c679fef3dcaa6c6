-- The id of a circuit, made on its first use. $1 namespace_id int, $2 name text
with made as (
  insert into circuit (namespace_id, name) values ($1, $2)
  on conflict (namespace_id, name) do nothing
  returning circuit_id
)
select circuit_id from made
union all
select circuit_id from circuit where namespace_id = $1 and name = $2
limit 1
