-- One version of a template. $1 namespace_id int, $2 name text, $3 version text
select name, version, prerelease, body, digest, created_at, created_by
from template
where namespace_id = $1 and name = $2 and version = $3
