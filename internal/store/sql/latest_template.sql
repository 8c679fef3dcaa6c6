-- The latest version of a template: the greatest release, or the greatest pre-release where there is none.
-- $1 namespace_id int, $2 name text
select name, version, prerelease, body, digest, created_at, created_by
from template
where namespace_id = $1 and name = $2
order by prerelease, version_order desc
limit 1
