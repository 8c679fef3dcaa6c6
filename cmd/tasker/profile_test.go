package main

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryCommandMayWriteAProfileOfItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.pprof")
	getenv := func(string) string { return "" }
	var out, errs strings.Builder
	if code := run(t.Context(), []string{"bench", "--scenario", "none", "--cpu-profile", path}, getenv, nil, &out, &errs); code == 0 {
		t.Errorf("a scenario that is none ran: %s", out.String())
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatalf("the command failed, and its profile with it: %v", err)
	}
	if body, err := io.ReadAll(unzipped); err != nil || !strings.Contains(string(body), "nanoseconds") {
		t.Errorf("no profile, but %q, %v", body, err)
	}
	errs.Reset()
	nowhere := filepath.Join(t.TempDir(), "no", "cpu.pprof")
	if code := run(t.Context(), []string{"version", "--cpu-profile", nowhere}, getenv, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), "making the profile") {
		t.Errorf("status %d: %s", code, errs.String())
	}
}
