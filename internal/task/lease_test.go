package task_test

import (
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/task"
)

func TestTokenComesBack(t *testing.T) {
	token := task.Token{
		NamespaceID: 1<<31 - 1, Step: task.NewID(task.MaxShard, 1<<40-1).Step(task.MaxSteps), Dispatch: 1, SessionID: 7, Nonce: [16]byte{1, 15: 255},
	}
	got, ok := task.ParseToken(token.String())
	if !ok || got != token {
		t.Errorf("got %+v, %v", got, ok)
	}
	for name, spoilt := range map[string]string{
		"empty":             "",
		"padded":            token.String() + "=",
		"cut":               token.String()[1:],
		"continued":         token.String() + "A",
		"another alphabet":  strings.Repeat("+", len(token.String())),
		"another version":   "Ag" + token.String()[2:],
		"no namespace":      task.Token{Step: 16385, Dispatch: 1, SessionID: 1}.String(),
		"a task, no step":   task.Token{NamespaceID: 1, Step: 16384, Dispatch: 1, SessionID: 1}.String(),
		"a step too many":   task.Token{NamespaceID: 1, Step: 16384 + task.MaxSteps + 1, Dispatch: 1, SessionID: 1}.String(),
		"no dispatch":       task.Token{NamespaceID: 1, Step: 16385, SessionID: 1}.String(),
		"a negative number": task.Token{NamespaceID: 1, Step: 16385, Dispatch: 1, SessionID: -1}.String(),
	} {
		if got, ok := task.ParseToken(spoilt); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
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
