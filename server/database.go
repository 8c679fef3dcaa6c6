package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/postgres"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/migrations"
)

// runtimeRole is what a server's sessions act as: it may read and write rows and nothing else.
const runtimeRole = "tasker_runtime"

// The supported major versions of PostgreSQL.
const (
	oldestPostgres = 15
	newestPostgres = 18
)

const (
	connectTimeout = 5 * time.Second
	probeTimeout   = 5 * time.Second
)

// database is the way to the database: the server's own one or that of a URL.
type database struct {
	log     *slog.Logger
	conf    *pgxpool.Config
	migrate bool             // bring the schema up before use
	own     *postgres.Server // nil: not ours
	store   *store.Store

	// asRuntime says that sessions can and do act as runtimeRole. Not known before the first look.
	asRuntime atomic.Bool
	warned    atomic.Bool
}

// openDatabase finds the database, or starts one. It does not wait for that of a URL to be there.
func openDatabase(ctx context.Context, c *Config, log *slog.Logger) (_ *database, err error) {
	db := &database{log: log, migrate: c.AutoMigrate}
	defer func() {
		if err != nil {
			db.close(ctx)
		}
	}()
	url := c.DatabaseURL
	if url == "" {
		db.own, err = postgres.Start(ctx, postgres.Config{
			DataDir: c.DataDir, BinDir: c.PostgresBinDir, Logger: log, Download: c.EmbeddedDownload,
			Progress: func(what string) { log.InfoContext(ctx, "starting PostgreSQL", "step", what) },
		})
		if err != nil {
			return nil, fmt.Errorf("starting PostgreSQL: %w", err)
		}
		url, db.migrate = db.own.ConnString(postgres.Database), true
	}
	if db.conf, err = db.config(url); err != nil {
		return nil, err
	}
	db.conf.MaxConns = int32(c.Connections)                           //nolint:gosec // at most 1,000
	db.store, err = store.Open(ctx, db.conf, int32(c.HotConnections)) //nolint:gosec // at most 1,000
	return db, err
}

// config is how every connection of the server is made.
func (db *database) config(url string) (*pgxpool.Config, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		// pgx leaves the password out of its text, but not what it took for something else.
		return nil, errors.New("the database URL cannot be read: it must be postgres://USER:PASSWORD@HOST:PORT/DATABASE or key=value pairs")
	}
	conn := conf.ConnConfig
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "tasker"
	}
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	if conn.ValidateConnect == nil && len(conn.Fallbacks) > 0 {
		// Of several hosts, only the primary will do.
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	conf.MaxConnLifetime, conf.MaxConnLifetimeJitter = time.Hour, 10*time.Minute
	// The check changes which connection an idle server uses, and a fresh one is pinged and has all to prepare. What it closes
	// is minutes old at least.
	conf.HealthCheckPeriod = 5 * time.Minute
	conf.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		if db.asRuntime.Load() {
			conn.RuntimeParams["role"] = runtimeRole
		}
		return nil
	}
	return conf, nil
}

// connect makes a connection outside of the pools, as the login itself.
func (db *database) connect(ctx context.Context, application string) (*pgx.Conn, error) {
	conf := db.conf.ConnConfig.Copy()
	conf.RuntimeParams["application_name"] = application
	return pgx.ConnectConfig(ctx, conf)
}

// listen makes a connection for LISTEN or NOTIFY.
func (db *database) listen(ctx context.Context) (*pgx.Conn, error) {
	return db.connect(ctx, "tasker notify")
}

// errNotReady says why the database cannot be used yet; no retry of ours changes that.
var errNotReady = errors.New("database not ready")

// prepare looks at the database before it is used: its version, its schema, the role to act as.
func (db *database) prepare(ctx context.Context) error {
	conn, err := db.connect(ctx, "tasker start")
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if db.migrate {
		if err := migrations.Up(ctx, conn); err != nil {
			return fmt.Errorf("migrating: %w", err)
		}
	}
	if err := db.checkSchema(ctx, conn); err != nil {
		return err
	}
	db.checkVersion(ctx, conn)
	may, err := mayActAsRuntime(ctx, conn)
	if err != nil {
		return fmt.Errorf("finding the role to act as: %w", err)
	}
	if may && !db.asRuntime.Swap(true) {
		// Sessions made before now act as the login.
		db.reset()
	}
	return nil
}

// checkSchema tells whether the schema has all that this release needs.
func (db *database) checkSchema(ctx context.Context, conn *pgx.Conn) error {
	state, err := migrations.Status(ctx, conn)
	switch {
	case err != nil:
		return fmt.Errorf("reading the schema's version: %w", err)
	case state.Newer():
		db.once("the database was migrated by a later release; this one goes on", "database_version", state.Current, "binary_version", state.Latest)
	case !state.Ready():
		return fmt.Errorf("%w: it lacks %s; run `tasker migrate up`, or serve with --auto-migrate", errNotReady, strings.Join(state.Pending, ", "))
	}
	return nil
}

func (db *database) checkVersion(ctx context.Context, conn *pgx.Conn) {
	var version int
	if err := conn.QueryRow(ctx, "select current_setting('server_version_num')::int / 10000").Scan(&version); err != nil {
		return // whoever uses the connection next will say so
	}
	if version < oldestPostgres || version > newestPostgres {
		db.once("this version of PostgreSQL is not one that Tasker is tested with", "version", version, "oldest", oldestPostgres, "newest", newestPostgres)
	}
}

// once warns, but not at every look.
func (db *database) once(msg string, args ...any) {
	if !db.warned.Swap(true) {
		db.log.Warn(msg, args...) //nolint:sloglint // the callers' messages are static
	}
}

// mayActAsRuntime tells whether the login can take the runtime's role on. Until PostgreSQL 16 every member could.
func mayActAsRuntime(ctx context.Context, conn *pgx.Conn) (may bool, err error) {
	how := "SET"
	if conn.PgConn().ParameterStatus("server_version") < "16" {
		how = "MEMBER"
	}
	err = conn.QueryRow(ctx, `
		select case when to_regrole($1) is null then false else pg_has_role(session_user, to_regrole($1), $2) end`, runtimeRole, how).Scan(&may)
	return may, err
}

// probe is the regular look: is the database there, and is it the writable one?
func (db *database) probe(ctx context.Context) (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var standby bool
	err = db.store.Cold.QueryRow(ctx, "select clock_timestamp(), pg_is_in_recovery()").Scan(&at, &standby)
	if err == nil && standby {
		// It was a primary when we connected, or the name now leads elsewhere: connect anew.
		db.reset()
		err = fmt.Errorf("%w: this PostgreSQL is a standby", errNotReady)
	}
	return at, err
}

// reset makes the pools connect anew. Connections in use are closed when they come back.
func (db *database) reset() {
	db.store.Hot.Reset()
	db.store.Cold.Reset()
}

// gone is closed when the server's own Postgres is gone for good. Nil, which blocks for ever, when it is not ours.
func (db *database) gone() <-chan struct{} {
	if db.own == nil {
		return nil
	}
	return db.own.Done()
}

func (db *database) close(ctx context.Context) {
	if db.store != nil {
		db.store.Close()
	}
	if db.own != nil {
		if err := db.own.Stop(ctx); err != nil {
			db.log.ErrorContext(ctx, "stopping PostgreSQL failed", "error", err)
		}
	}
}
