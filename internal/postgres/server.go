//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Server is a running embedded server, owned or joined.
type Server struct {
	info    Info
	dataDir string
	logger  *slog.Logger

	// done is closed when the server is gone for good without Stop, err says why.
	done     chan struct{}
	doneOnce sync.Once
	err      error

	// One of the two is set.
	owned  *postmaster
	joined *membership

	ownerLock *os.File
	guardian  *guardian
	ephemeral bool
	stopOnce  sync.Once
	stopErr   error
}

// Start runs the cluster in the data directory, making it first if need be, or joins the server that another process runs
// there. It returns when the server accepts connections and has the database named Database. ctx bounds the start only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	dataDir, err := prepareDataDir(cfg)
	if err != nil {
		return nil, err
	}
	for {
		lock, err := tryLock(dataDir, ownerLock)
		if err != nil {
			return nil, err
		}
		if lock != nil {
			server, err := startOwned(ctx, cfg, dataDir, lock)
			if err != nil {
				_ = lock.Close()
				if cfg.Ephemeral {
					_ = os.RemoveAll(dataDir)
				}
				return nil, err
			}
			return server, nil
		}
		server, err := join(ctx, cfg, dataDir)
		if server != nil || err != nil {
			return server, err
		}
		// The owner went away while we waited for it: try to become it.
	}
}

// prepareDataDir makes the data directory. What root makes is open to enter: a cluster inside is run by another user and
// is closed itself.
func prepareDataDir(cfg Config) (string, error) {
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755
	}
	if cfg.Ephemeral {
		dir, err := os.MkdirTemp(cfg.DataDir, "tasker-ephemeral-")
		if err != nil {
			return "", fmt.Errorf("making an ephemeral data directory: %w", err)
		}
		return dir, os.Chmod(dir, mode)
	}
	dir, err := resolveDataDir(cfg.DataDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return "", fmt.Errorf("making the data directory: %w", err)
	}
	return dir, nil
}

// startOwned is Start with the owner's lock in hand.
func startOwned(ctx context.Context, cfg Config, dataDir string, lock *os.File) (_ *Server, err error) {
	// What a dead owner left behind. Its socket directory is named nowhere else.
	if old, err := readInfo(dataDir); err == nil && strings.HasPrefix(filepath.Base(old.SocketDir), socketDirPrefix) {
		_ = os.RemoveAll(old.SocketDir)
	}
	if err := os.Remove(filepath.Join(dataDir, infoFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing a stale address: %w", err)
	}

	major, err := clusterVersion(dataDir)
	if err != nil {
		return nil, err
	}
	binaries, err := binariesFor(ctx, cfg, major)
	if err != nil {
		return nil, err
	}
	pgdata := filepath.Join(dataDir, clusterName)
	as, err := accountFor(pgdata)
	if err != nil {
		return nil, err
	}

	hold, err := lockCluster(ctx, cfg, dataDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = hold.Close() }() // The postmaster has inherited it by then.
	if major == 0 {
		cfg.progress("making a new PostgreSQL %d cluster in %s", binaries.Major, dataDir)
		if err := initCluster(ctx, dataDir, binaries, as, hold, cfg.NoFsync); err != nil {
			return nil, err
		}
	}
	if err := writeDefaults(pgdata, as); err != nil {
		return nil, err
	}
	if err := disownStalePID(pgdata, as); err != nil {
		return nil, err
	}
	dir, err := openClusterDir(pgdata, as)
	if err != nil {
		return nil, err
	}
	socketDir, err := makeSocketDir(dataDir, as)
	if err != nil {
		dir.close()
		return nil, err
	}

	server := &Server{
		info:      Info{OwnerPID: os.Getpid(), SocketDir: socketDir, Version: binaries.Major, BinDir: binaries.Dir},
		dataDir:   dataDir,
		logger:    cfg.Logger,
		done:      make(chan struct{}),
		ownerLock: lock,
		ephemeral: cfg.Ephemeral,
	}
	server.owned = &postmaster{
		binaries: binaries, as: as, dir: dir, dataDir: dataDir, socketDir: socketDir,
		settings: settingsOf(cfg), logger: cfg.Logger, gone: server.gone,
	}
	defer func() {
		if err != nil {
			abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, server.Stop(abort))
		}
	}()
	if server.guardian, err = guard(dataDir, socketDir, cfg.Ephemeral); err != nil {
		return nil, err
	}
	if err := server.owned.start(hold); err != nil { //nolint:contextcheck // The supervisor outlives the start.
		return nil, err
	}
	if err := server.awaitReady(ctx, cfg); err != nil {
		return nil, err
	}
	if err := writeInfo(dataDir, server.info); err != nil {
		return nil, fmt.Errorf("publishing the server's address: %w", err)
	}
	cfg.Logger.Info("embedded PostgreSQL is ready", "version", binaries.Major, "data_dir", dataDir,
		"binaries", binaries.Dir, "log", filepath.Join(dataDir, logFile))
	return server, nil
}

// binariesFor finds the installation for a cluster of the major version, or for a new one, and downloads it if that is
// allowed and needed.
func binariesFor(ctx context.Context, cfg Config, major int) (Binaries, error) {
	binaries, err := FindBinaries(ctx, cfg.BinDir, major)
	lacking := errors.Is(err, ErrNotInstalled) || errors.Is(err, ErrVersionMismatch)
	named := cfg.BinDir != "" || os.Getenv(BinEnv) != ""
	if lacking && cfg.Download && !named && (major == 0 || major == downloadMajor) {
		binaries, err = Download(ctx, cfg.Progress)
	}
	if err == nil && !slices.Contains(testedMajors, binaries.Major) {
		cfg.Logger.Warn("this PostgreSQL version is not among those Tasker is tested on", "version", binaries.Major, "tested", testedMajors)
	}
	return binaries, err
}

// lockCluster waits until nothing uses the cluster. After the death of an owner its postmaster needs a moment to write
// everything down; that is given to it, within bounds.
func lockCluster(ctx context.Context, cfg Config, dataDir string) (*os.File, error) {
	const patience = time.Minute
	told := false
	return waitLock(ctx, dataDir, clusterLock, func(waited time.Duration) error {
		if waited > time.Second && !told {
			told = true
			cfg.progress("waiting for the previous PostgreSQL on %s to stop", dataDir)
		}
		if waited > patience {
			return fmt.Errorf("the previous PostgreSQL on %s has not stopped for %s: stop it by hand (its process id is in %s/postmaster.pid)",
				dataDir, patience, clusterName)
		}
		return nil
	})
}

func guard(dataDir, socketDir string, ephemeral bool) (*guardian, error) {
	switch {
	case ephemeral:
		// Nobody will read these files again, so the immediate shutdown will do.
		return startGuardian("QUIT", dataDir, []string{dataDir, socketDir})
	case !kernelGuards:
		return startGuardian("INT", dataDir, nil)
	default:
		return nil, nil
	}
}

func settingsOf(cfg Config) map[string]string {
	settings := map[string]string{}
	if cfg.NoFsync {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	for name, value := range cfg.Settings {
		settings[name] = value
	}
	return settings
}

// awaitReady connects until it succeeds, which after a crash may take as long as the recovery, and makes the database.
func (s *Server) awaitReady(ctx context.Context, cfg Config) error {
	began, told := time.Now(), false
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.ConnString("postgres"))
		if err == nil {
			s.owned.ready.Store(true)
			return errors.Join(createDatabase(ctx, conn), conn.Close(ctx))
		}
		if !told && time.Since(began) > 2*time.Second {
			told = true
			cfg.progress("waiting for PostgreSQL to recover; it says in %s what it does", filepath.Join(s.dataDir, logFile))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for PostgreSQL to accept connections: %w (last: %w)", context.Cause(ctx), err)
		case <-s.done:
			return s.err
		case <-ticker.C:
		}
	}
}

func createDatabase(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "create database "+Database)
	var pgErr *pgconn.PgError
	if err != nil && (!errors.As(err, &pgErr) || pgErr.Code != pgerrcode.DuplicateDatabase) {
		return fmt.Errorf("creating database %s: %w", Database, err)
	}
	// Whole pages compress well. Set per database because a server built without lz4 then only warns, at connect.
	const compress = `select 1 from pg_settings where name = 'wal_compression' and 'lz4' = any (enumvals)`
	if tag, err := conn.Exec(ctx, compress); err == nil && tag.RowsAffected() == 1 {
		if _, err := conn.Exec(ctx, "alter database "+Database+" set wal_compression = 'lz4'"); err != nil {
			return fmt.Errorf("setting wal_compression: %w", err)
		}
	}
	return nil
}

// ConnString is a connection URL for db as AdminRole.
func (s *Server) ConnString(db string) string { return s.info.ConnString(db) }

// Info tells how to reach the server.
func (s *Server) Info() Info { return s.info }

// Version is the server's major version.
func (s *Server) Version() int { return s.info.Version }

// BinDir is where the server's binaries are.
func (s *Server) BinDir() string { return s.info.BinDir }

// DataDir is the directory that holds the cluster.
func (s *Server) DataDir() string { return s.dataDir }

// Joined says that another process owns the server. It may stop at any time, then Done is closed.
func (s *Server) Joined() bool { return s.joined != nil }

// Done is closed when the server is gone for good and nobody called Stop: it died more often than it was worth restarting,
// or its owner stopped. Err tells which.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why Done was closed, nil before.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

func (s *Server) gone(err error) {
	s.doneOnce.Do(func() {
		s.err = err
		close(s.done)
	})
}

// Stop shuts an owned server down: open transactions are rolled back, everything is written to disk. When ctx ends first,
// or after 30 seconds, it stops at once instead, and the next start recovers from the log. A joined server is only left.
// Calling it again returns the same.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() { s.stopErr = s.stop(ctx) })
	return s.stopErr
}

func (s *Server) stop(ctx context.Context) error {
	if s.joined != nil {
		s.joined.leave()
		return nil
	}
	err := s.owned.stop(ctx)
	s.owned.dir.close()
	err = errors.Join(err, s.guardian.dismiss())
	if removeErr := os.Remove(filepath.Join(s.dataDir, infoFile)); !errors.Is(removeErr, os.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	err = errors.Join(err, os.RemoveAll(s.info.SocketDir))
	if s.ephemeral {
		err = errors.Join(err, os.RemoveAll(s.dataDir))
	}
	return errors.Join(err, s.ownerLock.Close())
}
