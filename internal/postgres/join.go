//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

// joinPatience bounds the wait for an owner that has the lock to have its server ready.
const joinPatience = 2 * time.Minute

// membership is a joined server as its member sees it: one idle connection, whose end is the server's.
type membership struct {
	cancel context.CancelFunc
	left   chan struct{}
}

// join waits for the owner's server and connects to it. Without error and server, the owner has gone away meanwhile.
func join(ctx context.Context, cfg Config, dataDir string) (*Server, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, joinPatience, fmt.Errorf("another process holds %s but no server appeared in %s",
		filepath.Join(dataDir, ownerLock), joinPatience))
	defer cancel()
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for told := false; ; {
		info, err := readInfo(dataDir)
		if err == nil {
			var conn *pgx.Conn
			if conn, err = pgx.Connect(ctx, info.ConnString("postgres")); err == nil {
				return newMember(ctx, cfg, dataDir, *info, conn)
			}
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("the server on %s runs as another user: %w", dataDir, err)
		}
		lock, lockErr := tryLock(dataDir, ownerLock)
		if lockErr != nil {
			return nil, lockErr
		}
		if lock != nil {
			return nil, lock.Close()
		}
		if !told {
			told = true
			cfg.progress("waiting for the PostgreSQL that another process starts on %s", dataDir)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("joining the server on %s: %w (last: %w)", dataDir, context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

func newMember(ctx context.Context, cfg Config, dataDir string, info Info, conn *pgx.Conn) (*Server, error) {
	// The owner publishes its address when the database exists, so there is nothing to make; and it is what the member
	// will use, so see that it is there.
	var exists bool
	err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", Database).Scan(&exists)
	if err == nil && !exists {
		err = fmt.Errorf("it has no database %s", Database)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("joining the server on %s: %w", dataDir, err), conn.Close(ctx))
	}
	stay, cancel := context.WithCancel(context.WithoutCancel(ctx))
	member := &membership{cancel: cancel, left: make(chan struct{})}
	server := &Server{info: info, dataDir: dataDir, logger: cfg.Logger, done: make(chan struct{}), joined: member}
	go func() {
		defer close(member.left)
		for {
			// Nobody notifies this connection: it returns when the connection or our interest in it ends.
			if _, err := conn.WaitForNotification(stay); err != nil {
				if stay.Err() == nil {
					server.gone(fmt.Errorf("the PostgreSQL of process %d has stopped: %w", info.OwnerPID, err))
				}
				closing, cancel := context.WithTimeout(context.WithoutCancel(stay), time.Second)
				defer cancel()
				_ = conn.Close(closing)
				return
			}
		}
	}()
	cfg.Logger.Info("joined the embedded PostgreSQL of another process", "owner_pid", info.OwnerPID, "version", info.Version, "data_dir", dataDir)
	return server, nil
}

func (m *membership) leave() {
	m.cancel()
	<-m.left
}
