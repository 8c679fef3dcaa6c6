//go:build ignore

// Postgres18 prints the bin directory of the PostgreSQL that the server downloads where none is installed, downloading
// it unless it is already there.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/taskerhq/tasker/internal/postgres"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	binaries, err := postgres.Download(ctx, func(line string) { fmt.Fprintln(os.Stderr, line) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "postgres18:", err)
		os.Exit(1)
	}
	fmt.Println(binaries.Dir)
}
