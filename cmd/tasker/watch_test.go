package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// fullDisk is an output that takes nothing.
type fullDisk struct{ writes int }

var errNoSpace = errors.New("no space left on device")

func (d *fullDisk) Write([]byte) (int, error) {
	d.writes++
	return 0, errNoSpace
}

// What cannot be shown is no lost connection: a watch that resumed would show nothing, and never say so.
func TestAWatchEndsWhereItsOutputDoes(t *testing.T) {
	p := newPerson(t)
	id := answer(p, &taskerv1.SubmitTaskResponse{}, "submit", "-f", p.file("watched.yaml", seed)).GetTask().GetTaskId()
	for _, format := range []string{"table", "json"} {
		var stderr bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		out := &fullDisk{}
		code := run(ctx, []string{"-o", format, "task", "watch", id}, p.getenv, strings.NewReader(""), out, &stderr)
		expired := ctx.Err() != nil
		cancel()
		if expired || code == 0 || out.writes == 0 || !strings.Contains(stderr.String(), errNoSpace.Error()) {
			t.Errorf("-o %s: exit status %d after %d writes, timed out: %v: %s", format, code, out.writes, expired, stderr.String())
		}
		if strings.Contains(stderr.String(), "watching again") {
			t.Errorf("-o %s: it resumes: %s", format, stderr.String())
		}
	}
}
