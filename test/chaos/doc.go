// Package chaos holds the chaos test: servers, workers and Postgres backends
// are killed while clients submit and workers report, and what everyone saw is
// then held against what the database says happened.
package chaos
