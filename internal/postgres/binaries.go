package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
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
// where distributions and Homebrew install, and the download cache.
func FindBinaries(ctx context.Context, binDir string, major int) (Binaries, error) {
	if binDir == "" {
		binDir = os.Getenv(BinEnv)
	}
	if binDir != "" {
		return namedBinaries(ctx, binDir, major)
	}
	var found []Binaries
	for _, dir := range installedDirs(ctx) {
		if binaries, err := inspect(ctx, dir); err == nil {
			found = append(found, binaries)
		}
	}
	return choose(found, major)
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
	if out, err := output(ctx, "pg_config", "--bindir"); err == nil {
		add(strings.TrimSpace(out))
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
	for _, dir := range cachedDirs() {
		add(dir)
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
	out, err := output(ctx, filepath.Join(dir, "postgres"), "-V")
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

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput() //nolint:gosec // A path found by this package.
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return false
	}
	return runtime.GOOS == "windows" || info.Mode()&0o111 != 0
}
