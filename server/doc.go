// Package server is the process: configuration, database, engine, services, listener, and the order in which they start and
// stop. It wires; it decides nothing about tasks.
//
// A server begins to listen at once and answers UNAVAILABLE until its database is there and its schema is recent enough.
// From then on the health service follows the database: NOT_SERVING takes a server out of its balancer, while calls that
// reach it are still tried, since trouble may be over sooner than the next look. Nothing is restarted by hand: whatever comes
// back is used again.
//
// A stop goes: NOT_SERVING, no new dispatches and a draining frame on every stream; a while for workers to move; the streams'
// end; the end of the calls under way; the engine, the pools, the server's own Postgres.
package server
