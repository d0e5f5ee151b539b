"""Who of those that wait runs next: one small file a policy, named by `RuntimeOptions.admission`."""
