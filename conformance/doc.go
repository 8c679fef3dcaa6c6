// Package conformance has no code: its tests hold a whole server, over gRPC and on a real PostgreSQL, to what Tasker
// promises. The table in rows_test.go says, promise by promise, which test of this project proves it, wherever that stands.
package conformance
