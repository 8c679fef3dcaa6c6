package task_test

import (
	"encoding/base64"
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/task"
)

func TestPageTokenComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := task.HashFilter(rapid.SliceOf(rapid.String()).Draw(t, "filter")...)
		id, name := rapid.Int64().Draw(t, "id"), rapid.StringN(0, 255, 1024).Draw(t, "name")
		var gotID int64
		var gotName string
		if err := task.DecodePage(task.EncodePage(f, id, name), f, &gotID, &gotName); err != nil {
			t.Fatal(err)
		}
		if gotID != id || gotName != name {
			t.Errorf("got %d %q, want %d %q", gotID, gotName, id, name)
		}
	})
}

func TestPageTokenRefuses(t *testing.T) {
	f := task.HashFilter("ListTasks", "default", "state=error")
	good := task.EncodePage(f, int64(math.MinInt64), "ab")
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	newer := append([]byte{9}, raw[1:]...)
	for name, token := range map[string]string{
		"nothing":           "",
		"not base64url":     strings.Repeat("+", len(good)),
		"padded":            good + "=",
		"another spelling":  good[:len(good)-1] + string(good[len(good)-1]+1), // differs in the unused bits only
		"cut":               encode(raw[:len(raw)-1]),
		"continued":         encode(append(raw, 'i')),
		"only a filter":     encode(raw[:9]),
		"another version":   encode(newer),
		"another filter":    task.EncodePage(task.HashFilter("ListTasks", "default"), int64(1), "a"),
		"parts run on":      task.EncodePage(task.HashFilter("ListTasks", "defaults", "tate=error"), int64(1), "a"),
		"another key":       task.EncodePage(f, "a", int64(1)),
		"a shorter key":     task.EncodePage(f, int64(1)),
		"a longer key":      task.EncodePage(f, int64(1), "a", "b"),
		"an absurd length":  encode(append(append([]byte{}, raw[:18]...), 't', 0xff, 0xff, 0xff, 0xff, 'a')),
		"far too long":      task.EncodePage(f, int64(1), strings.Repeat("a", 10_000)),
		"a lease token":     task.Token{NamespaceID: 1, Step: 16385, Dispatch: 1, SessionID: 1}.String(),
		"surrounding space": " " + good,
	} {
		var id int64
		var text string
		if err := task.DecodePage(token, f, &id, &text); !errors.Is(err, &task.Error{Reason: task.BadPageToken}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var id int64
	var text string
	if err := task.DecodePage(good, f, &id, &text); err != nil || id != math.MinInt64 || text != "ab" {
		t.Errorf("%d %q %v", id, text, err)
	}
}

// A token that is accepted is the one that EncodePage makes of what was read.
func FuzzDecodePage(f *testing.F) {
	filter := task.HashFilter("ListTasks")
	f.Add(task.EncodePage(filter, int64(81920), "name"))
	f.Add(task.EncodePage(task.PageFilter{}, int64(-1), ""))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		var id int64
		var text string
		for _, filter := range []task.PageFilter{filter, {}} {
			if task.DecodePage(token, filter, &id, &text) == nil && task.EncodePage(filter, id, text) != token {
				t.Errorf("%q is taken as %d %q", token, id, text)
			}
		}
	})
}

// A lease token that is accepted has one spelling and names a step that there can be.
func FuzzParseToken(f *testing.F) {
	f.Add(task.Token{NamespaceID: 1, Step: 16385, Dispatch: 1, SessionID: 1, Nonce: [16]byte{1, 2, 3}}.String())
	f.Add(strings.Repeat("A", 50))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, ok := task.ParseToken(s)
		if !ok {
			return
		}
		if token.String() != s {
			t.Errorf("%q is taken as %q", s, token.String())
		}
		if no := token.Step.No(); no < 1 || no > task.MaxSteps || token.Step.Task().Step(no) != token.Step {
			t.Errorf("%q names step %d", s, token.Step)
		}
	})
}
