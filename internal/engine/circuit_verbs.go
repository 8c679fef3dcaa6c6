package engine

import (
	"context"

	"github.com/taskerhq/tasker/internal/task"
)

// CircuitFrame is what a watch of circuits hands out.
type CircuitFrame struct {
	Snapshot bool
	Circuits []*task.Circuit
	Events   []*task.CircuitEvent // the oldest first
	Revision string
}

// CircuitWatch follows circuits of a namespace.
type CircuitWatch struct{ sent bool }

func noCircuit(namespace, name string) error {
	return task.Refuse(task.CircuitNotFound, "there is no circuit %s", name).With("namespace", namespace).With("circuit", name)
}

// GetCircuit reads one circuit.
func (e *Engine) GetCircuit(_ context.Context, namespace, name string) (*task.Circuit, error) {
	return nil, noCircuit(namespace, name)
}

// CircuitDefaults reads the namespace's default policy.
func (e *Engine) CircuitDefaults(_ context.Context, namespace string) (*task.Circuit, error) {
	return &task.Circuit{Namespace: namespace}, nil
}

// ListCircuits reads circuits by name.
func (e *Engine) ListCircuits(context.Context, task.CircuitQuery) ([]*task.Circuit, error) {
	return nil, nil
}

// SetCircuitPolicy sets fields of a policy.
func (e *Engine) SetCircuitPolicy(_ context.Context, namespace, name string, _ task.CircuitPolicy, _ []string, _, _ string) (*task.Circuit, error) {
	return nil, noCircuit(namespace, name)
}

// HoldCircuit keeps a circuit shut.
func (e *Engine) HoldCircuit(_ context.Context, namespace, name string, _ task.CircuitHold) (*task.Circuit, error) {
	return nil, noCircuit(namespace, name)
}

// ReleaseCircuit lets a circuit probe.
func (e *Engine) ReleaseCircuit(_ context.Context, namespace, name, _, _ string) (*task.Circuit, error) {
	return nil, noCircuit(namespace, name)
}

// ListCircuitEvents reads the record, the newest first.
func (e *Engine) ListCircuitEvents(context.Context, task.CircuitEventQuery) ([]*task.CircuitEvent, error) {
	return nil, nil
}

// WatchCircuits begins to follow circuits.
func (e *Engine) WatchCircuits(context.Context, string, []string, string) (*CircuitWatch, error) {
	return &CircuitWatch{}, nil
}

// Next waits for the next frame.
func (w *CircuitWatch) Next(ctx context.Context) (CircuitFrame, error) {
	if !w.sent {
		w.sent = true
		return CircuitFrame{Snapshot: true, Revision: "0"}, nil
	}
	<-ctx.Done()
	return CircuitFrame{}, ctx.Err()
}

// Close ends the watch.
func (w *CircuitWatch) Close() {}
