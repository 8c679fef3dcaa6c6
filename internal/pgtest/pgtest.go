// Package pgtest gives every test a real, migrated PostgreSQL database of its own.
//
// The first New of a test process starts a private cluster (without fsync: nothing here outlives the process), migrates a
// template database, and every New clones that template. The cluster goes away with the process, however that ends. Call
// Main from TestMain to stop it in order and to have goroutine leaks reported.
//
// $TASKER_TEST_POSTGRES_BIN chooses the PostgreSQL to test on: its bin directory, or "download" for the one that an
// embedded server would download. Otherwise it is the one a server would find. Where there is none, tests fail rather than
// skip.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/internal/postgres"
	"github.com/taskerhq/tasker/migrations"
)

// BinEnv names the environment variable that chooses the PostgreSQL to test on.
const BinEnv = "TASKER_TEST_POSTGRES_BIN"

const (
	templateName = "tasker_template"
	startTimeout = time.Minute
	dropTimeout  = 10 * time.Second
)

// cluster is the one of this process.
var cluster struct {
	once     sync.Once
	server   *postgres.Server
	err      error
	template sync.Once
	// templateErr is why there is no template.
	templateErr error
	serial      atomic.Int64
}

// DB is a database for one test. It is dropped at the end of the test.
type DB struct {
	// Pool connects as the superuser that owns everything in it. It is closed at the end of the test.
	Pool *pgxpool.Pool
	// Name is the database's name.
	Name string
}

// New makes a database with the current schema.
func New(t testing.TB) *DB {
	t.Helper()
	server := Server(t)
	cluster.template.Do(func() { cluster.templateErr = makeTemplate(server) })
	if cluster.templateErr != nil {
		t.Fatalf("making the template database: %v", cluster.templateErr)
	}
	return newDB(t, server, templateName)
}

// NewEmpty makes a database without any schema, for tests of migrations.
func NewEmpty(t testing.TB) *DB {
	t.Helper()
	return newDB(t, Server(t), "template0")
}

func newDB(t testing.TB, server *postgres.Server, template string) *DB {
	t.Helper()
	db := &DB{Name: fmt.Sprintf("test_%d", cluster.serial.Add(1))}
	// Copying files is quicker than logging blocks where a checkpoint waits for no disk.
	admin := fmt.Sprintf("create database %s template %s strategy file_copy", db.Name, template)
	if err := execute(t.Context(), server, admin); err != nil {
		t.Fatalf("making a database: %v", err)
	}
	config, err := pgxpool.ParseConfig(db.ConnString())
	if err != nil {
		t.Fatalf("parsing the connection string: %v", err)
	}
	config.MaxConns = 20
	// The pool outlives the test's context, which ends before its cleanups run.
	db.Pool, err = pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	if err != nil {
		t.Fatalf("connecting: %v", err)
	}
	t.Cleanup(func() {
		db.Pool.Close()
		ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
		defer cancel()
		if err := execute(ctx, server, "drop database "+db.Name+" with (force)"); err != nil {
			t.Errorf("dropping the database: %v", err)
		}
	})
	return db
}

// ConnString is a connection URL, for what does not take a pool, such as another process.
func (db *DB) ConnString() string { return cluster.server.ConnString(db.Name) }

// Conn is a connection of its own, closed at the end of the test.
func (db *DB) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.ConnString())
	if err != nil {
		t.Fatalf("connecting: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
		defer cancel()
		_ = conn.Close(ctx) // The test may have broken it on purpose.
	})
	return conn
}

// Server is the process's cluster, started by the first call.
func Server(t testing.TB) *postgres.Server {
	t.Helper()
	cluster.once.Do(func() { cluster.server, cluster.err = start() })
	if cluster.err != nil {
		t.Fatalf("starting PostgreSQL for tests: %v", cluster.err)
	}
	return cluster.server
}

func start() (*postgres.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	binDir := os.Getenv(BinEnv)
	if binDir == "download" {
		downloaded, err := postgres.Download(ctx, nil)
		if err != nil {
			return nil, err
		}
		binDir = downloaded.Dir
	}
	return postgres.Start(ctx, postgres.Config{
		BinDir:    binDir,
		Logger:    slog.New(slog.DiscardHandler),
		NoFsync:   true,
		Ephemeral: true,
		Settings: map[string]string{
			// Parallel tests, each with a pool.
			"max_connections": "300",
			// Cloning a template need not wait for a checkpoint, and nothing else asks for one in a test's time.
			"checkpoint_timeout": "1h",
			"max_wal_size":       "8GB",
		},
	})
}

func makeTemplate(server *postgres.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := execute(ctx, server, "create database "+templateName); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, server.ConnString(templateName))
	if err != nil {
		return err
	}
	// A template must have no connection when it is cloned.
	return errors.Join(migrations.Up(ctx, conn), conn.Close(ctx))
}

// execute runs one statement on a connection that is gone afterwards: a pool would leave goroutines behind between tests.
func execute(ctx context.Context, server *postgres.Server, sql string) error {
	conn, err := pgx.Connect(ctx, server.ConnString("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// Main runs a package's tests, stops the cluster, and fails when goroutines are left. Use it as
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if cluster.server != nil {
		if err := cluster.server.Stop(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest: stopping PostgreSQL:", err)
			code = max(code, 1)
		}
	}
	if code == 0 {
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// IgnoreCluster lets goleak.VerifyNone in a single test overlook the goroutine that supervises the cluster.
func IgnoreCluster() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/taskerhq/tasker/internal/postgres.(*postmaster).supervise")
}
