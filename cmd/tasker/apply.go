package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/template"
)

func init() { commands = append(commands, newApply) }

func newApply(c *cli) *cobra.Command {
	var file, name, version string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Register a template written as YAML",
		Long: `Register a template written as YAML.

Without a version, in the file or as a flag, a body that equals the latest version's changes nothing, and another becomes the
next patch of it; the first is 0.1.0. With a version, the same body is fine and another is refused: a version never changes.
A file that names no template is named by its base name.`,
		Example: "  tasker apply -f user_registration.yaml",
		Args:    exactly(),
	}
	remote := c.newRemote(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "the template's `FILE`; - is standard input")
	cmd.Flags().StringVar(&name, "name", "", "register it under this `NAME` instead of the file's")
	cmd.Flags().StringVar(&version, "version", "", "register it as this `VERSION` instead of the file's")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		definition, err := c.readTemplate(file, name)
		if err != nil {
			return err
		}
		if version != "" {
			definition.Version = &version
		}
		if s.namespace != "" {
			definition.Namespace = s.namespace
		}
		answer, err := ask(ctx, s.remote, s.templates.RegisterTemplate, &taskerv1.RegisterTemplateRequest{Template: definition})
		if err != nil {
			return fmt.Errorf("registering %s: %w", definition.GetName(), err)
		}
		return s.print(answer, func() error {
			how := "registered"
			if answer.GetAlreadyRegistered() {
				how = "unchanged"
			}
			stored := answer.GetTemplate()
			return s.printf("%s@%s %s (namespace %s, %d steps)\n", stored.GetName(), stored.GetVersion(), how, stored.GetNamespace(), len(stored.GetSteps()))
		})
	})
	return cmd
}

// readTemplate reads a template from a file, or from standard input where the file is "-".
func (c *cli) readTemplate(file, name string) (*taskerv1.Template, error) {
	switch file {
	case "":
		return nil, usageError("-f FILE is missing")
	case "-":
		if name == "" {
			return nil, usageError("a template from standard input needs --name")
		}
		body, err := io.ReadAll(c.stdin)
		if err != nil {
			return nil, fmt.Errorf("reading the template: %w", err)
		}
		return template.Parse("standard input", body, name)
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the template: %w", err)
	}
	return template.Parse(file, body, name)
}
