package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/template"
)

func init() { commands = append(commands, newWorkers, newTemplates, newTemplateGroup) }

func newWorkers(c *cli) *cobra.Command {
	var handler, token string
	var limit int
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "List workers: those at work, and those that left less than a day ago",
		Args:  exactly(),
	}
	remote := c.newRemote(cmd)
	cmd.Flags().StringVar(&handler, "handler", "", "only workers that take this `HANDLER`")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		request := &taskerv1.ListWorkersRequest{Namespace: s.namespace, PageToken: token}
		if handler != "" {
			request.Handler = &handler
		}
		answer := &taskerv1.ListWorkersResponse{}
		err := s.pages(limit, func(size int32) (int, string, error) {
			request.PageSize = size
			page, err := ask(ctx, s.remote, s.workers.ListWorkers, request)
			answer.Workers = append(answer.Workers, page.GetWorkers()...)
			answer.NextPageToken = page.GetNextPageToken()
			request.PageToken = page.GetNextPageToken()
			return len(page.GetWorkers()), page.GetNextPageToken(), err
		})
		if err != nil {
			return fmt.Errorf("listing workers: %w", err)
		}
		return s.print(answer, func() error { return s.page(s.workerTable(answer.GetWorkers()), answer.GetNextPageToken()) })
	})
	return cmd
}

func (p *printer) workerTable(workers []*taskerv1.Worker) *table {
	list := p.table("worker_id", "instance_id", "state", "in_flight", "max_in_flight", "handlers", "opened_at", "seen_at", "build_id", "client_info", "labels")
	for _, worker := range workers {
		var handlers []string
		for _, handler := range worker.GetHandlers() {
			handlers = append(handlers, handler.GetName())
		}
		state := "connected"
		switch {
		case worker.GetClosedAt() != nil:
			state = "closed"
		case worker.GetDrainedAt() != nil:
			state = "drained"
		}
		list.add(oneLine(worker.GetWorkerId()), oneLine(worker.GetInstanceId()), p.state(state), count(worker.GetInFlight()), count(worker.GetMaxInFlight()),
			oneLine(strings.Join(handlers, ",")), instant(worker.GetOpenedAt()), instant(worker.GetSeenAt()), oneLine(worker.GetBuildId()),
			oneLine(worker.GetClientInfo()), pairs(worker.GetLabels()))
	}
	return list
}

func newTemplates(c *cli) *cobra.Command {
	var name, token string
	var limit int
	var latest bool
	cmd := &cobra.Command{Use: "templates", Short: "List registered templates and their versions", Args: exactly()}
	remote := c.newRemote(cmd)
	cmd.Flags().StringVar(&name, "name", "", "only versions of this `NAME`")
	cmd.Flags().BoolVar(&latest, "latest", false, "only the latest version of each")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		request := &taskerv1.ListTemplatesRequest{Namespace: s.namespace, LatestOnly: latest, PageToken: token}
		if name != "" {
			request.Name = &name
		}
		answer := &taskerv1.ListTemplatesResponse{}
		err := s.pages(limit, func(size int32) (int, string, error) {
			request.PageSize = size
			page, err := ask(ctx, s.remote, s.templates.ListTemplates, request)
			answer.Templates = append(answer.Templates, page.GetTemplates()...)
			answer.NextPageToken = page.GetNextPageToken()
			request.PageToken = page.GetNextPageToken()
			return len(page.GetTemplates()), page.GetNextPageToken(), err
		})
		if err != nil {
			return fmt.Errorf("listing templates: %w", err)
		}
		return s.print(answer, func() error {
			list := s.table("name", "version", "steps", "registered_at", "registered_by", "description")
			for _, summary := range answer.GetTemplates() {
				list.add(oneLine(summary.GetName()), summary.GetVersion(), count(summary.GetStepCount()), instant(summary.GetRegisteredAt()),
					oneLine(summary.GetRegisteredBy()), brief(summary.GetDescription()))
			}
			return s.page(list, answer.GetNextPageToken())
		})
	})
	return cmd
}

func newTemplateGroup(c *cli) *cobra.Command {
	cmd := group("template", "Read a template")
	remote := c.newRemote(cmd)
	get := &cobra.Command{
		Use:   "get NAME[@VERSION]",
		Short: "Print a template as the YAML that apply takes; without a version, the latest",
		Args:  exactly("NAME[@VERSION]"),
	}
	get.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.templates.GetTemplate, &taskerv1.GetTemplateRequest{Namespace: s.namespace, Template: templateRef(args[0])})
		if err != nil {
			return fmt.Errorf("reading template %s: %w", args[0], err)
		}
		return s.print(answer, func() error {
			body, err := template.Marshal(answer.GetTemplate())
			if err != nil {
				return fmt.Errorf("writing template %s: %w", args[0], err)
			}
			return s.write(string(body))
		})
	})
	cmd.AddCommand(get)
	return cmd
}
