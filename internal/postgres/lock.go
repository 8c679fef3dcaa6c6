//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	ownerLock   = "owner.lock"
	clusterLock = "cluster.lock"

	lockPoll = 20 * time.Millisecond
)

// tryLock takes the lock file exclusively, or returns nil when another open file holds it. The lock lives as long as any
// process has the returned file open.
func tryLock(dataDir, name string) (*os.File, error) {
	path := filepath.Join(dataDir, name)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return file, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, file.Close()
	default:
		_ = file.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
}

// waitLock takes the lock as soon as it is free. Every poll calls held first, with the time waited so far; an error from
// it ends the wait.
func waitLock(ctx context.Context, dataDir, name string, held func(waited time.Duration) error) (*os.File, error) {
	began := time.Now()
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		file, err := tryLock(dataDir, name)
		if file != nil || err != nil {
			return file, err
		}
		if err := held(time.Since(began)); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", filepath.Join(dataDir, name), context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
