-- $1 name text
select namespace_id from namespace where name = $1
