//go:build unix

package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/postgres"
)

// pretend makes a directory whose postgres claims to be of a version.
func pretend(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"postgres", "initdb"} {
		script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %s'\n", version)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestChooseAmongInstalled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		have []int
		want int // Of the data directory, 0 for a new one.
		got  int // 0 for an error.
		is   error
	}{
		{[]int{15}, 0, 15, nil},
		{[]int{16, 18, 15}, 0, 18, nil},
		{[]int{19, 15, 20}, 0, 15, nil},
		{[]int{20, 19, 14}, 0, 19, nil},
		{[]int{14, 13}, 0, 0, postgres.ErrNotInstalled},
		{nil, 0, 0, postgres.ErrNotInstalled},
		{[]int{18, 15}, 15, 15, nil},
		{[]int{18, 15}, 16, 0, postgres.ErrVersionMismatch},
		{nil, 16, 0, postgres.ErrNotInstalled},
	} {
		var found []postgres.Binaries
		for _, major := range test.have {
			found = append(found, postgres.Binaries{Dir: "/somewhere", Major: major})
		}
		got, err := postgres.Choose(found, test.want)
		if got.Major != test.got || !errors.Is(err, test.is) {
			t.Errorf("of %v for %d: %d, %v", test.have, test.want, got.Major, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %v", err)
		}
	}
}

func TestANamedDirectoryIsTheOnlyOne(t *testing.T) {
	old, current := pretend(t, "14.9"), pretend(t, "17beta2 (Somewhere 17~beta2-1)")
	for _, test := range []struct {
		name, binDir, env string
		major             int
		got               int
		is                error
	}{
		{"by argument", current, "", 0, 17, nil},
		{"by environment", "", current, 0, 17, nil},
		{"by the binary's path", "", filepath.Join(current, "postgres"), 0, 17, nil},
		{"the argument wins", current, old, 0, 17, nil},
		{"too old", old, "", 0, 0, postgres.ErrNotInstalled},
		{"of another major", current, "", 15, 0, postgres.ErrVersionMismatch},
		{"empty", t.TempDir(), "", 0, 0, postgres.ErrNotInstalled},
		{"missing", "/nonexistent", "", 0, 0, postgres.ErrNotInstalled},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(postgres.BinEnv, test.env)
			got, err := postgres.FindBinaries(t.Context(), test.binDir, test.major)
			if got.Major != test.got || !errors.Is(err, test.is) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestPATHIsSearched(t *testing.T) {
	installed, links := pretend(t, "16.1"), t.TempDir()
	if err := os.Symlink(filepath.Join(installed, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	t.Setenv(postgres.BinEnv, "")
	t.Setenv("PATH", links)
	got, err := postgres.FindBinaries(t.Context(), "", 16)
	if want := (postgres.Binaries{Dir: installed, Major: 16}); got != want || err != nil {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestPsqlIsFoundBesideTheServerFirst(t *testing.T) {
	dir, inPath := t.TempDir(), t.TempDir()
	for _, name := range []string{filepath.Join(dir, "psql"), filepath.Join(inPath, "psql")} {
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", inPath)
	for binDir, want := range map[string]string{dir: dir, t.TempDir(): inPath} {
		if got, err := postgres.FindPsql(t.Context(), binDir); got != filepath.Join(want, "psql") || err != nil {
			t.Errorf("beside %s: %s, %v", binDir, got, err)
		}
	}
}
