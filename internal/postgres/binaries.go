//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Major versions: oldest that works, newest that is tested.
const (
	oldestMajor = 15
	newestMajor = 18
)

// testedMajors are the versions that Tasker's tests run on.
var testedMajors = []int{15, 18}

// BinEnv names the environment variable that points at a PostgreSQL to use: its bin directory or its postgres binary.
const BinEnv = "TASKER_POSTGRES_BIN"

// Binaries is one PostgreSQL installation.
type Binaries struct {
	// Dir holds postgres and initdb.
	Dir string
	// Major is the major version.
	Major int
}

// FindBinaries looks for a PostgreSQL of the wanted major version; 0 means the newest supported one. A binDir given, else
// the directory in $TASKER_POSTGRES_BIN, is the only place looked at. Otherwise it is PATH, what pg_config tells,
// and where distributions and Homebrew install; failing these, the download cache.
func FindBinaries(ctx context.Context, binDir string, major int) (Binaries, error) {
	if binDir == "" {
		binDir = os.Getenv(BinEnv)
	}
	if binDir != "" {
		return namedBinaries(ctx, binDir, major)
	}
	found := inspectAll(ctx, installedDirs(ctx))
	binaries, err := choose(found, major)
	if err != nil {
		// What the machine's owner installed goes before what was downloaded once.
		return choose(append(found, inspectAll(ctx, cachedDirs())...), major)
	}
	return binaries, nil
}

func inspectAll(ctx context.Context, dirs []string) []Binaries {
	var found []Binaries
	for _, dir := range dirs {
		if binaries, err := inspect(ctx, dir); err == nil {
			found = append(found, binaries)
		}
	}
	return found
}

// namedBinaries is the installation that somebody asked for by name, so nothing else may be taken in its place.
func namedBinaries(ctx context.Context, path string, major int) (Binaries, error) {
	dir := path
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		dir = filepath.Dir(path)
	}
	binaries, err := inspect(ctx, dir)
	if err != nil {
		return Binaries{}, fmt.Errorf("%w at %s: %w", ErrNotInstalled, path, err)
	}
	if major != 0 && binaries.Major != major {
		return Binaries{}, mismatch(major, []Binaries{binaries})
	}
	if binaries.Major < oldestMajor {
		return Binaries{}, fmt.Errorf("%w: PostgreSQL %d at %s is older than %d", ErrNotInstalled, binaries.Major, dir, oldestMajor)
	}
	return binaries, nil
}

// choose takes the wanted major version, or the newest tested one, or failing that the oldest that is newer still.
func choose(found []Binaries, major int) (Binaries, error) {
	if major != 0 {
		for _, binaries := range found {
			if binaries.Major == major {
				return binaries, nil
			}
		}
		if len(found) > 0 {
			return Binaries{}, mismatch(major, found)
		}
		return Binaries{}, fmt.Errorf("%w: the data directory needs PostgreSQL %d; %s", ErrNotInstalled, major, installHint)
	}
	slices.SortStableFunc(found, func(a, b Binaries) int { return rank(b.Major) - rank(a.Major) })
	if len(found) == 0 || found[0].Major < oldestMajor {
		return Binaries{}, fmt.Errorf("%w: %s", ErrNotInstalled, installHint)
	}
	return found[0], nil
}

// rank orders majors by preference: 18, 17, 16, 15, 19, 20, …; below 15 never wins.
func rank(major int) int {
	switch {
	case major < oldestMajor:
		return -1_000_000
	case major <= newestMajor:
		return major
	default:
		return -major
	}
}

const installHint = "install PostgreSQL 15 to 18 (apt install postgresql, dnf install postgresql-server, brew install postgresql@18), " +
	"or point " + BinEnv + " at its bin directory, or allow the download (--embedded-download), or use a server you have (--database-url)"

func mismatch(want int, have []Binaries) error {
	names := make([]string, len(have))
	for i, binaries := range have {
		names[i] = fmt.Sprintf("%d (%s)", binaries.Major, binaries.Dir)
	}
	return fmt.Errorf("%w: it was made by PostgreSQL %d and only runs on that; found here: %s; install PostgreSQL %d, or upgrade the cluster with pg_upgrade",
		ErrVersionMismatch, want, strings.Join(names, ", "), want)
}

// FindPsql is the path of a psql client: beside the server's binaries, else on PATH, else of any installation.
func FindPsql(ctx context.Context, binDir string) (string, error) {
	for _, dir := range append([]string{binDir}, filepath.SplitList(os.Getenv("PATH"))...) {
		if path := filepath.Join(dir, "psql"); filepath.IsAbs(dir) && isExecutable(path) {
			return path, nil
		}
	}
	for _, dir := range installedDirs(ctx) {
		if path := filepath.Join(dir, "psql"); isExecutable(path) {
			return path, nil
		}
	}
	return "", errors.New("no psql found: install the PostgreSQL client (apt install postgresql-client, brew install libpq)")
}

// installedDirs are the directories that may hold an installation, most explicit first, each once.
func installedDirs(ctx context.Context) []string {
	var dirs []string
	add := func(dir string) {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil && filepath.IsAbs(resolved) && !slices.Contains(dirs, resolved) {
			dirs = append(dirs, resolved)
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		// A link in PATH leads to the real directory, beside which postgres looks for its share directory.
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			add(filepath.Dir(resolved))
		}
	}
	if out, err := stdoutOf(ctx, "pg_config", "--bindir"); err == nil {
		add(out)
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
		"/usr/lib/postgresql*/bin",                           // openSUSE
		"/usr/pgsql-*/bin",                                   // PGDG on RHEL and Fedora
		"/usr/libexec/postgresql*",                           // Alpine
		"/usr/local/pgsql/bin",                               // built from source
		"/opt/homebrew/opt/postgresql@*/bin",                 // Homebrew on Apple silicon
		"/usr/local/opt/postgresql@*/bin",                    // Homebrew on Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",    // Homebrew on Linux
		"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
		"/opt/local/lib/postgresql*/bin",                     // MacPorts
		"/usr/bin",                                           // Arch, Fedora
	} {
		matches, _ := filepath.Glob(pattern)
		slices.Sort(matches)
		for _, dir := range slices.Backward(matches) {
			add(dir)
		}
	}
	return dirs
}

var versionPattern = regexp.MustCompile(`PostgreSQL\) (\d+)`)

// inspect asks the postgres binary in dir for its version.
func inspect(ctx context.Context, dir string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, err
	}
	for _, name := range []string{"postgres", "initdb"} {
		if !isExecutable(filepath.Join(dir, name)) {
			return Binaries{}, fmt.Errorf("no executable %s in %s", name, dir)
		}
	}
	out, err := stdoutOf(ctx, filepath.Join(dir, "postgres"), "-V")
	if err != nil {
		return Binaries{}, err
	}
	match := versionPattern.FindStringSubmatch(out)
	if match == nil {
		return Binaries{}, fmt.Errorf("%s/postgres names no version: %q", dir, out)
	}
	major, err := strconv.Atoi(match[1])
	if err != nil {
		return Binaries{}, err
	}
	return Binaries{Dir: dir, Major: major}, nil
}

// stdoutOf runs a program that only tells something, and returns what it told.
func stdoutOf(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output() //nolint:gosec // TASKER_POSTGRES_BIN names a program to run.
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return false
	}
	return info.Mode()&0o111 != 0
}
