-- $1 lane_id int
select lane_id, namespace_id, handler, circuit, priority from lane where lane_id = $1
