// Command river drives River as bench/peers tells it to.
//
// It is set as River's own benchmark sets it: many workers, and a client that fetches again at once. Inserts take the fast
// path, which copies rows.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/taskerhq/tasker/bench/peers/go/module"
	"github.com/taskerhq/tasker/bench/peers/harness"
)

const (
	batch      = 1000
	submitters = 2
	workers    = 2000
	// connections are for the fetches and completions of the client, and for our submits.
	connections = 20
)

func main() {
	who := harness.Identity{Peer: "river", Version: module.Version("github.com/riverqueue/river"), Batch: batch, Submitters: submitters}
	harness.Main(who, open)
}

// args is the job.
type args struct {
	Number  int    `json:"number"`
	Payload string `json:"payload"`
}

// Kind is the job's name.
func (args) Kind() string { return "noop" }

type worker struct {
	river.WorkerDefaults[args]
	started func(int)
}

// Work is the handler, which does nothing.
func (w *worker) Work(_ context.Context, job *river.Job[args]) error {
	w.started(job.Args.Number)
	return nil
}

type queue struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
	worker *worker
}

func open(ctx context.Context, url string) (harness.Queue, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	q := &queue{pool: pool, worker: &worker{}}
	registered := river.NewWorkers()
	river.AddWorker(registered, q.worker)
	q.client, err = river.NewClient(driver, &river.Config{
		Workers:           registered,
		Logger:            slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
	})
	return q, err
}

func (q *queue) Submit(ctx context.Context, count, number int) error {
	jobs := make([]river.InsertManyParams, count)
	for i := range jobs {
		jobs[i].Args = args{Number: number, Payload: harness.Payload}
	}
	_, err := q.client.InsertManyFast(ctx, jobs)
	return err
}

func (q *queue) SubmitOne(ctx context.Context, number int) error {
	_, err := q.client.Insert(ctx, args{Number: number, Payload: harness.Payload}, nil)
	return err
}

func (q *queue) Work(ctx context.Context, started func(int)) error {
	q.worker.started = started
	return q.client.Start(ctx)
}

func (q *queue) Completed(ctx context.Context) (n int64, err error) {
	err = q.pool.QueryRow(ctx, "select count(*) from river_job where state = 'completed'").Scan(&n)
	return n, err
}

func (q *queue) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := q.client.StopAndCancel(ctx)
	q.pool.Close()
	return err
}
