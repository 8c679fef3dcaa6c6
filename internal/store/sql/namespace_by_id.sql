-- Whether a namespace has an id. $1 namespace_id int
select exists (select from namespace where namespace_id = $1)
