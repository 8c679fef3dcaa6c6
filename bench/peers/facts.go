package peers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

// settings of Postgres that the figures depend on.
var settings = []string{
	"fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_compression", "shared_buffers", "max_wal_size", "checkpoint_timeout",
	"autovacuum_naptime", "jit",
}

// facts are what the figures depend on besides the peers.
type facts struct {
	began         time.Time
	loadBefore    float64
	cpus          int
	model, system string
	memoryGiB     float64
	postgres      string
	settings      []string // as name = value
	golang, node  string
}

func (r *run) facts(ctx context.Context) (f facts, err error) {
	f = facts{began: time.Now(), cpus: runtime.NumCPU(), golang: strings.TrimPrefix(runtime.Version(), "go")}
	f.system = runtime.GOOS + "/" + runtime.GOARCH
	if f.loadBefore, err = loadAverage(); err != nil {
		return f, err
	}
	f.model = fileField("/proc/cpuinfo", "model name")
	if kib, err := strconv.ParseFloat(strings.TrimSuffix(fileField("/proc/meminfo", "MemTotal"), " kB"), 64); err == nil {
		f.memoryGiB = kib / (1 << 20)
	}
	conn, err := pgx.Connect(ctx, r.postgres.ConnString(postgres.Database))
	if err != nil {
		return f, fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, "select current_setting('server_version')").Scan(&f.postgres); err != nil {
		return f, fmt.Errorf("asking for the server's version: %w", err)
	}
	rows, _ := conn.Query(ctx, "select s || ' = ' || current_setting(s) from unnest($1::text[]) with ordinality as t(s, n) order by n", settings)
	if f.settings, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return f, fmt.Errorf("asking for the server's settings: %w", err)
	}
	// Where no peer needs it, it need not be there.
	if out, err := exec.CommandContext(ctx, "node", "--version").Output(); err == nil {
		f.node = strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
	}
	return f, nil
}

// taskerVersion is that of the server that is measured.
func taskerVersion(ctx context.Context, root string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(root, "bin/tasker"), "version").Output()
	if err != nil {
		return "", fmt.Errorf("asking for Tasker's version: %w", err)
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "tasker "), " ")
	return version, nil
}

func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}

// fileField is the value of the first line "name : value" of a file, or nothing.
func fileField(path, name string) string {
	text, _ := os.ReadFile(path) // a system without it does not tell
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
