//go:build unix

package pgtest_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/migrations"
)

// childEnv makes a test process wait to be killed.
const childEnv = "TASKER_TEST_PGTEST_CHILD"

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestEachDatabaseIsMigratedAndAlone(t *testing.T) {
	t.Parallel()
	for range 4 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			state, err := migrations.Status(t.Context(), db.Conn(t))
			if err != nil || !state.Ready() {
				t.Fatalf("state %+v, error %v", state, err)
			}
			// Fails if another test's database is the same one.
			if _, err := db.Pool.Exec(t.Context(), "create table mine ()"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestNoGoroutineOutlivesTheTest(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t, pgtest.IgnoreCluster()) })
	db := pgtest.New(t)
	if err := db.Pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A test process that is killed takes its cluster with it, files and all.
func TestNothingOutlivesAKilledProcess(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		fmt.Println("cluster", pgtest.Server(t).DataDir(), pgtest.Server(t).Info().SocketDir)
		select {}
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), childEnv+"=yes")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var dataDir, socketDir string
	if _, err := fmt.Fscanf(bufio.NewReader(out), "cluster %s %s\n", &dataDir, &socketDir); err != nil {
		t.Fatal(errors.Join(err, child.Process.Kill(), child.Wait()))
	}
	// The cluster's lock is held by whichever process of it is left.
	lock, err := os.Open(filepath.Join(dataDir, "cluster.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		running := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		_, dataErr := os.Stat(dataDir)
		_, socketErr := os.Stat(socketDir)
		if running == nil && errors.Is(dataErr, os.ErrNotExist) && errors.Is(socketErr, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: process: %v, data: %v, socket: %v", running, dataErr, socketErr)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	pgtest.Server(b)
	for b.Loop() {
		pgtest.New(b)
	}
}
