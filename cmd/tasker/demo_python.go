package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	clientproto "github.com/taskerhq/tasker/gen/proto"

	"github.com/taskerhq/tasker/examples/registration"
)

// pythonPackages is what the workers in Python need, as an import.
const pythonPackages = "import grpc, grpc_tools.protoc"

// preparePython finds a Python that will do, and makes the contract's stubs with it.
func (d *demo) preparePython(ctx context.Context) error {
	if err := d.findPython(ctx); err != nil {
		return err
	}
	protos := filepath.Join(d.dir, "proto")
	d.stubs = filepath.Join(d.dir, "stubs")
	if err := os.CopyFS(protos, clientproto.Files); err != nil {
		return fmt.Errorf("writing the contract's files: %w", err)
	}
	if err := os.Mkdir(d.stubs, 0o700); err != nil {
		return fmt.Errorf("making a folder for the stubs: %w", err)
	}
	files, err := fs.Glob(clientproto.Files, "tasker/v1/*.proto")
	if err != nil {
		return fmt.Errorf("listing the contract's files: %w", err)
	}
	args := append([]string{"-m", "grpc_tools.protoc", "-I", protos, "--python_out", d.stubs, "--grpc_python_out", d.stubs}, files...)
	if out, err := exec.CommandContext(ctx, d.python, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("making the Python stubs: %w\n%s", err, out)
	}
	if err := os.WriteFile(d.workerPy(), registration.WorkerPython, 0o600); err != nil {
		return fmt.Errorf("writing the worker in Python: %w", err)
	}
	d.say("made Python stubs of the contract's %d files with %s", len(files), d.python)
	return nil
}

func (d *demo) workerPy() string { return filepath.Join(d.dir, "worker.py") }

// findPython settles which Python runs the workers.
func (d *demo) findPython(ctx context.Context) error {
	candidates := []string{d.python}
	if d.python == "" {
		candidates = []string{filepath.Join(".venv", "bin", "python"), "python3"}
	}
	var why []error
	for _, candidate := range candidates {
		path, err := exec.LookPath(candidate)
		if err != nil {
			why = append(why, err)
			continue
		}
		// A path that is only relative would be looked for in the folder of each process.
		if path, err = filepath.Abs(path); err != nil {
			return fmt.Errorf("finding Python: %w", err)
		}
		if out, err := exec.CommandContext(ctx, path, "-c", pythonPackages).CombinedOutput(); err != nil {
			why = append(why, fmt.Errorf("%s: %w\n%s", path, err, out))
			continue
		}
		d.python = path
		return nil
	}
	return fmt.Errorf("the demo needs a Python with the packages grpcio and grpcio-tools: run `make demo`, or name one with --python\n%w", errors.Join(why...))
}
