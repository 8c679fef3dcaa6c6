//go:build unix

package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	clusterName = "pgdata"
	logFile     = "postgres.log"
	settingsInc = "tasker.conf"
)

// defaults are what an embedded server runs with unless the operator says otherwise in postgresql.conf, by ALTER SYSTEM,
// or through Config.Settings, each winning over the one before.
//
// Durability is not among them: fsync, full_page_writes and synchronous_commit stay on.
var defaults = map[string]string{
	// Enough for the live tables of a busy queue, small enough for a laptop.
	"shared_buffers": "128MB",
	// Checkpoints by time rather than by volume: each one makes the following writes log whole pages.
	"max_wal_size":       "2GB",
	"min_wal_size":       "128MB",
	"checkpoint_timeout": "10min",
	// A batch of steps or an operator's report sorts in memory.
	"work_mem":             "16MB",
	"maintenance_work_mem": "128MB",
	// Compiling costs more than the short statements of a queue take.
	"jit": "off",
	// A handful of servers with a pool each, psql, and dashboards.
	"max_connections": "100",
	// One statement on a parent of many partitions locks them all.
	"max_locks_per_transaction": "128",
	// The live tables are rewritten all the time: visit them often, and do not doze while cleaning them.
	"autovacuum_naptime":           "10s",
	"autovacuum_vacuum_cost_delay": "1ms",
	// Any disk of this decade.
	"random_page_cost": "1.1",
	// What is logged is read by people who look for what went wrong.
	"log_line_prefix": "'%m [%p] %q%a %d '",
	"log_lock_waits":  "on",
	"log_timezone":    "'UTC'",
	"timezone":        "'UTC'",
	"lc_messages":     "'C'",
}

// clusterVersion is the major version that made the cluster, 0 if there is none yet.
func clusterVersion(dataDir string) (int, error) {
	if _, err := os.Stat(filepath.Join(dataDir, "PG_VERSION")); err == nil {
		return 0, fmt.Errorf("%s is a PostgreSQL cluster of its own; give the server a directory for itself, or use the cluster by --database-url", dataDir)
	}
	pgdata := filepath.Join(dataDir, clusterName)
	body, err := os.ReadFile(filepath.Join(pgdata, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		if entries, _ := os.ReadDir(pgdata); len(entries) > 0 {
			return 0, fmt.Errorf("%s has files but no PG_VERSION: it is not a PostgreSQL cluster", pgdata)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the cluster's version: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return 0, fmt.Errorf("%s/PG_VERSION: %w", pgdata, err)
	}
	return major, nil
}

// initCluster makes the cluster under another name and renames it when it is whole, so that an interrupted initdb leaves
// nothing that looks like a cluster. The caller holds both locks.
func initCluster(ctx context.Context, dataDir string, binaries Binaries, as account, lock *os.File, noFsync bool) error {
	leftovers, _ := filepath.Glob(filepath.Join(dataDir, clusterName+".new-*"))
	for _, leftover := range leftovers {
		if err := os.RemoveAll(leftover); err != nil {
			return fmt.Errorf("removing an unfinished cluster: %w", err)
		}
	}
	fresh, err := os.MkdirTemp(dataDir, clusterName+".new-")
	if err != nil {
		return fmt.Errorf("making the cluster directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(fresh) }() // Gone already after the rename.
	if err := as.own(fresh); err != nil {
		return fmt.Errorf("giving the cluster to user %s: %w", userName(as.uid), err)
	}
	dir, err := openClusterDir(fresh, as)
	if err != nil {
		return err
	}
	defer dir.close()

	args := []string{
		"-D", dir.arg(), "-U", AdminRole,
		// The socket directory is the lock on the door.
		"--auth-local=trust", "--auth-host=reject",
		// Orders and compares text the same on every machine, whatever locales it has.
		"--encoding=UTF8", "--locale=C",
		"--data-checksums",
	}
	if noFsync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(binaries.Dir, "initdb"), args...)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.ExtraFiles = dir.inherit(lock)
	// initdb runs postgres through a shell: ending the whole group ends them all.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as.credential(), Setpgid: true}
	// The signal follows the end of the starting thread, so that thread must not be one that ends early.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setParentDeathSignal(cmd.SysProcAttr, syscall.SIGKILL)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("initdb: %w\n%s", err, strings.TrimSpace(out.String()))
	}

	const ours = "# Parameters that Tasker chooses; the file is rewritten at each start.\ninclude 'tasker.conf'\n\n# Yours below win over them.\n"
	if err := os.WriteFile(filepath.Join(fresh, "postgresql.conf"), []byte(ours), 0o600); err != nil {
		return fmt.Errorf("writing postgresql.conf: %w", err)
	}
	if err := as.own(filepath.Join(fresh, "postgresql.conf")); err != nil {
		return err
	}
	pgdata := filepath.Join(dataDir, clusterName)
	if err := os.Remove(pgdata); err != nil && !errors.Is(err, os.ErrNotExist) { // Only ever an empty directory.
		return fmt.Errorf("replacing the empty cluster directory: %w", err)
	}
	if err := os.Rename(fresh, pgdata); err != nil {
		return fmt.Errorf("putting the cluster in place: %w", err)
	}
	return nil
}

// writeDefaults puts the defaults where postgresql.conf includes them from.
func writeDefaults(pgdata string, as account) error {
	var conf strings.Builder
	conf.WriteString("# Rewritten at each start of Tasker: change postgresql.conf or use ALTER SYSTEM instead.\n")
	for _, name := range slices.Sorted(maps.Keys(defaults)) {
		fmt.Fprintf(&conf, "%s = %s\n", name, defaults[name])
	}
	path := filepath.Join(pgdata, settingsInc)
	if err := os.WriteFile(path, []byte(conf.String()), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", settingsInc, err)
	}
	return as.own(path)
}

// disownStalePID makes a postmaster.pid left by a killed postmaster harmless. The caller holds cluster.lock, so no process
// of that postmaster lives; but its number may have gone to a stranger meanwhile, likely so in a container, and then
// Postgres would take the stranger for a postmaster. Postgres ignores a file that names its own parent, and then still
// checks for shared memory in use: so write our number there instead of removing the file and that check with it.
func disownStalePID(pgdata string, as account) error {
	path := filepath.Join(pgdata, "postmaster.pid")
	body, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading postmaster.pid: %w", err)
	}
	first, rest, _ := strings.Cut(string(body), "\n")
	if pid, err := strconv.Atoi(strings.TrimSpace(first)); err == nil && isPostmaster(pid, pgdata) {
		return fmt.Errorf("PostgreSQL (process %d) runs on %s without Tasker: stop it first", pid, pgdata)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"+rest), 0o600); err != nil {
		return fmt.Errorf("disowning the stale postmaster.pid: %w", err)
	}
	return as.own(path)
}

// isPostmaster says whether the process works in the cluster directory, as somebody's pg_ctl start would make it. Only
// Linux tells; elsewhere the answer is no, and Postgres's own check of shared memory remains.
func isPostmaster(pid int, pgdata string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	cluster, err := os.Stat(pgdata)
	return err == nil && os.SameFile(cwd, cluster)
}

// environment is all that initdb and postgres get to see: no PG* variable may change what they do, and no secret of ours
// belongs in the environment of another process.
func environment() []string {
	env := []string{"LC_ALL=C", "LANG=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
