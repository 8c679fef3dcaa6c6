-- The id of a lane, made on its first use. $1 namespace_id int, $2 handler text, $3 circuit text, $4 priority int
with made as (
  insert into lane (namespace_id, handler, circuit, priority) values ($1, $2, $3, $4)
  on conflict (namespace_id, handler, circuit, priority) do nothing
  returning lane_id
)
select lane_id from made
union all
select lane_id from lane where namespace_id = $1 and handler = $2 and circuit = $3 and priority = $4
limit 1
