// Command dbos drives DBOS Transact as bench/peers tells it to: a workflow without steps, through a queue.
//
// The queue polls a hundred times as often as it would by default, and takes a thousand workflows at once. Many are
// enqueued within one transaction, which is the library's own way to do so.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/bench/peers/go/module"
	"github.com/taskerhq/tasker/bench/peers/harness"
)

const (
	batch        = 500
	submitters   = 4
	concurrency  = 1000
	pollInterval = 10 * time.Millisecond
	connections  = 30 // of each side: the runtime, and the client that enqueues
	application  = "bench"
	queueName    = "noop"
	shutdown     = 5 * time.Second
)

func main() {
	who := harness.Identity{
		Peer: "dbos", Version: module.Version("github.com/dbos-inc/dbos-transact-golang"), Batch: batch, Submitters: submitters,
	}
	harness.Main(who, open)
}

// input is the job.
type input struct {
	Number  int    `json:"number"`
	Payload string `json:"payload"`
}

type queue struct {
	url     string
	log     *slog.Logger
	pool    *pgxpool.Pool
	client  dbos.Client
	runtime dbos.Context
}

func open(ctx context.Context, url string) (harness.Queue, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	q := &queue{url: url, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if q.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	// The first launch makes the tables and stores the queue. Nobody works until told to, so it ends again.
	runtime, err := q.launch(ctx, func(int) {})
	if err != nil {
		return nil, err
	}
	if err := dbos.Shutdown(runtime, shutdown); err != nil {
		return nil, fmt.Errorf("ending the first runtime: %w", err)
	}
	q.client, err = dbos.NewClient(ctx, dbos.ClientConfig{SystemDBPool: q.pool, AppName: application, Logger: q.log})
	return q, err
}

func (q *queue) launch(ctx context.Context, started func(int)) (dbos.Context, error) {
	runtime, err := dbos.NewContext(ctx, dbos.Config{DatabaseURL: fmt.Sprintf("%s&pool_max_conns=%d", q.url, connections), AppName: application, Logger: q.log})
	if err != nil {
		return nil, err
	}
	dbos.RegisterWorkflow(runtime, func(_ dbos.Context, in input) (int, error) {
		started(in.Number)
		return in.Number, nil
	}, dbos.WithWorkflowName(queueName))
	_, err = dbos.RegisterQueue(runtime, queueName, dbos.WithQueueBasePollingInterval(pollInterval), dbos.WithWorkerConcurrency(concurrency))
	if err != nil {
		return nil, err
	}
	return runtime, dbos.Launch(runtime)
}

func (q *queue) Submit(ctx context.Context, count, number int) error {
	return pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		for range count {
			if err := q.enqueue(number, dbos.WithEnqueueTransaction(tx)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (q *queue) SubmitOne(_ context.Context, number int) error { return q.enqueue(number) }

func (q *queue) enqueue(number int, options ...dbos.EnqueueOption) error {
	_, err := dbos.Enqueue[int](q.client, queueName, queueName, input{Number: number, Payload: harness.Payload}, options...)
	return err
}

func (q *queue) Work(ctx context.Context, started func(int)) error {
	if q.runtime != nil {
		return errors.New("it works already")
	}
	var err error
	q.runtime, err = q.launch(ctx, started)
	return err
}

func (q *queue) Completed(ctx context.Context) (n int64, err error) {
	err = q.pool.QueryRow(ctx, "select count(*) from dbos.workflow_status where status = 'SUCCESS'").Scan(&n)
	return n, err
}

func (q *queue) Close(context.Context) error {
	var err error
	if q.runtime != nil {
		err = dbos.Shutdown(q.runtime, shutdown)
	}
	err = errors.Join(err, dbos.Shutdown(q.client, shutdown))
	q.pool.Close()
	return err
}
