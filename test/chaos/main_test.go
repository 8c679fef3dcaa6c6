// Package chaos runs servers, workers and clients as processes of the operating system on one database, kills them at
// random with -9, stops them for a while, and cuts the servers' connections to the database. When it lets them be, every
// task must come to its end, and the checker must find every invariant kept: by the history, by the tables, and by what the
// workers and clients wrote down themselves.
package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/worker"
)

// roleEnv makes the test binary play a role instead of running the tests: worker, client or operator.
const roleEnv = "CHAOS_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		pgtest.Main(m)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := play(ctx, role)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func play(ctx context.Context, role string) (err error) {
	addresses := os.Getenv("CHAOS_ADDRESSES")
	conn, err := worker.Dial(addresses, insecure.NewCredentials(), grpc.WithDefaultCallOptions(grpc.WaitForReady(false)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	switch role {
	case "worker":
		return work(ctx, conn)
	case "client":
		return submitTasks(ctx, conn)
	case "operator":
		return operate(ctx, conn)
	}
	return fmt.Errorf("there is no role %s", role)
}
